import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl._train import _start_batch, prepare


@pytest.fixture(scope="module")
def trained(tiny):
    """Untrained policies of three seeds, and one of a single seed: files do not care what the weights are."""

    def policy(key):
        return gorl.finish(tiny, _start_batch(prepare(tiny), key)).policy

    return policy(jax.random.split(jax.random.key(0), 3)), policy(jax.random.key(1))


def test_policies_come_back_bit_for_bit(tiny, trained, tmp_path):
    for number, policy in enumerate(trained):
        path = tmp_path / f"{number}.eqx"
        gorl.save_policy(path, policy, tiny)
        loaded = gorl.load_policy(path)
        assert jax.tree.structure(loaded) == jax.tree.structure(policy)
        assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(policy)))


def test_a_seed_is_picked_and_acts(tiny, trained, tmp_path):
    gorl.save_policy(tmp_path / "policies.eqx", trained[0], tiny)
    policy = gorl.load_policy(tmp_path, seed=2, env="MultiGoal")
    observation = jnp.array([0.3, -0.2])
    of_all = jax.vmap(lambda policy: policy.mode(observation))(trained[0])
    np.testing.assert_allclose(policy.mode(observation), of_all[2], rtol=1e-6)


def test_a_seed_that_is_not_there(tiny, trained, tmp_path):
    gorl.save_policy(tmp_path / "many", trained[0], tiny)
    gorl.save_policy(tmp_path / "one", trained[1], tiny)
    with pytest.raises(gorl.InputError, match="holds seeds 0 to 2"):
        gorl.load_policy(tmp_path / "many", seed=3)
    with pytest.raises(gorl.InputError, match="leave seed out"):
        gorl.load_policy(tmp_path / "one", seed=0)


def test_a_policy_of_another_environment(tiny, trained, tmp_path):
    gorl.save_policy(tmp_path / "policy", trained[1], tiny)
    with pytest.raises(gorl.InputError, match="trained on MultiGoal, not on PointMass"):
        gorl.load_policy(tmp_path / "policy", env="PointMass")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:20], "no policy file"),
        (lambda data: b"", "no policy file"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "checksum"),
        (lambda data: b'{"format": 99, "bytes": 0, "sha256": ""}\n', "format 99"),
        (lambda data: b"\x00\xff\n" + data, "no policy file"),
        (lambda data: b"[1]\n", "no policy file"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(tiny, trained, tmp_path, damage, sentence):
    path = tmp_path / "policy"
    gorl.save_policy(path, trained[1], tiny)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.load_policy(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(gorl.InputError, match="No such file"):
        gorl.load_policy(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    gorl.write_whole(path, "old")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        gorl.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_header_can_be_read_without_gorl(tiny, trained, tmp_path):
    gorl.save_policy(tmp_path / "policy", trained[1], tiny)
    header = json.loads((tmp_path / "policy").read_bytes().partition(b"\n")[0])
    assert header["observation_size"] == 2
    assert gorl.Config.from_json(json.dumps(header["config"])) == tiny
