import hashlib
import json
import os
import signal
import subprocess
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
import gorl._checkpoint as gorl_checkpoint
import gorl._env as gorl_env
from gorl._iterate import _init_seeds, state_shapes
from gorl._prepare import prepare


@pytest.fixture(scope="module")
def trained(tiny):
    """Untrained policies of three seeds, and one of a single seed: files do not care what the weights are."""

    def policy(key):
        return gorl.finish(tiny, _init_seeds(*prepare(tiny), None, key)).policy

    return policy(jax.random.split(jax.random.key(0), 3)), policy(jax.random.key(1))


@pytest.fixture(scope="module")
def states(tiny):
    """The states that runs of three seeds and of a single one begin with."""
    return tuple(
        _init_seeds(*prepare(tiny), None, key) for key in (jax.random.split(jax.random.key(0), 3), jax.random.key(1))
    )


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


DAMAGES = [
    lambda data: data[:-1],
    lambda data: data[: len(data) // 2],
    lambda data: data[:20],
    lambda data: b"",
    lambda data: data + b"\n",
    lambda data: b"[1]\n",
    *(lambda data, at=at: flipped(data, at) for at in (-9, 0, 5, 20, 100, 1000)),
]


def flipped(data, at):
    """The data with one bit changed."""
    data = bytearray(data)
    data[at] ^= 1
    return bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_a_sentence(tiny, trained, tmp_path, damage):
    path = tmp_path / "policy"
    gorl.save_policy(path, trained[1], tiny)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(gorl.DamagedFileError, match=r"is (no policy file|damaged or cut short)"):
        gorl.load_policy(path)


def of_format(path, version):
    """Makes a file one of another format."""
    _, _, rest = path.read_bytes().partition(b"\n")
    digest = hashlib.sha256(f"{version}\n".encode() + rest).hexdigest()
    path.write_bytes(f"gorl {version} {digest}\n".encode() + rest)


def test_a_file_of_a_newer_format_is_not_called_damaged(tiny, trained, tmp_path):
    path = tmp_path / "policy"
    gorl.save_policy(path, trained[1], tiny)
    of_format(path, 99)
    with pytest.raises(gorl.InputError, match="install a newer gorl") as refused:
        gorl.load_policy(path)
    assert not isinstance(refused.value, gorl.DamagedFileError)


def test_a_file_of_an_older_format_names_the_version_that_wrote_it(tiny, states, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.0")
    gorl.save_policy(tmp_path / "policy", trained[1], tiny)
    gorl.save_state(tmp_path / "state", states[1], tiny)
    for path in tmp_path.iterdir():
        of_format(path, 1)
    for load in (
        lambda: gorl.load_policy(tmp_path / "policy"),
        lambda: gorl.load_state(tmp_path / "state", tiny),
    ):
        with pytest.raises(gorl.InputError, match=r"was written by gorl 0\.1\.0, .*: install that one to read it"):
            load()


def test_one_kind_of_file_is_not_taken_for_another(tiny, states, trained, tmp_path):
    gorl.save_policy(tmp_path / "policy", trained[1], tiny)
    gorl.save_state(tmp_path / "state", states[1], tiny)
    with pytest.raises(gorl.InputError, match="holds a state, not a policy"):
        gorl.load_policy(tmp_path / "state")
    with pytest.raises(gorl.InputError, match="holds a policy, not a state"):
        gorl.load_state(tmp_path / "policy", tiny)


# --- States. ---


def test_states_come_back_bit_for_bit_and_the_note_too(tiny, states, tmp_path, assert_same):
    for number, state in enumerate(states):
        gorl.save_state(tmp_path / f"{number}", state, tiny, note={"seconds": 1.5, "lines": ["µ", None]})
        loaded, note = gorl.load_state(tmp_path / f"{number}", tiny)
        assert_same(loaded, state)
        assert note == {"seconds": 1.5, "lines": ["µ", None]}


def test_a_state_of_sac_comes_back_with_its_buffer(tiny, tmp_path, assert_same):
    config = gorl.replace(
        tiny, {"learner": gorl.SAC(num_envs=4, buffer_size=300, batch_size=8, policy_width=8, value_width=8)}
    )
    shapes = state_shapes(config, jax.random.key(3))
    numbers = np.random.default_rng(0)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(7), leaf.shape)
        return jnp.asarray(
            numbers.integers(0, 2, leaf.shape) if leaf.dtype == bool else numbers.normal(size=leaf.shape) * 9,
            leaf.dtype,
        )

    state = jax.tree.map(fill, shapes)
    gorl.save_state(tmp_path / "state", state, config)
    assert_same(gorl.load_state(tmp_path / "state", config)[0], state)


def test_keys_of_another_kind_stay_what_they_are(tiny, tmp_path, assert_same):
    state = _init_seeds(*prepare(tiny), None, jax.random.split(jax.random.key(0, impl="rbg"), 2))
    gorl.save_state(tmp_path / "state", state, tiny)
    loaded, _ = gorl.load_state(tmp_path / "state", tiny)
    assert jax.random.key_impl(loaded.key) == "rbg"
    assert_same(loaded, state)


def test_a_changed_config_is_refused_by_the_fields_that_changed(tiny, states, tmp_path):
    gorl.save_state(tmp_path / "state", states[1], tiny)
    changed = gorl.replace(tiny, {"learner.clip_epsilon": 0.5, "env.episode_length": 30, "decoder": gorl.Diffusion()})
    with pytest.raises(gorl.InputError) as refused:
        gorl.load_state(tmp_path / "state", changed)
    for words in (
        "learner.clip_epsilon was 0.2 and is 0.5",
        "env.episode_length was 20 and is 30",
        "decoder.type was FlowMatching",
    ):
        assert words in str(refused.value)
    assert "learner.num_envs" not in str(refused.value)


def test_a_field_that_came_later_has_not_changed(tiny, states, tmp_path):
    path = tmp_path / "state"
    gorl.save_state(path, states[1], tiny)
    _, header, arrays = path.read_bytes().split(b"\n", 2)
    header = json.loads(header)
    assert header["config"]["learner"].pop("keep_features") is False  # as if this version had brought it
    rest = json.dumps(header).encode() + b"\n" + arrays
    path.write_bytes(b"\n" + rest)
    of_format(path, gorl_checkpoint._FORMAT)
    gorl.load_state(path, tiny)


def test_a_state_for_a_longer_config_is_extended(tiny, states, tmp_path, assert_same):
    gorl.save_state(tmp_path / "state", states[0], tiny, note="note")
    longer = gorl.lengthen(tiny, 2_400)
    loaded, note = gorl.load_state(tmp_path / "state", longer)
    assert_same(loaded, gorl.extend(tiny, states[0], longer))
    assert note == "note"


# --- What has changed since. ---


@pytest.fixture
def other_shapes(monkeypatch):
    """States have another array now."""

    def other(config, key):
        return eqx.tree_at(lambda s: s.index, shapes(config, key), jax.ShapeDtypeStruct((3,), jnp.int32))

    shapes = gorl_checkpoint.state_shapes
    monkeypatch.setattr(gorl_checkpoint, "state_shapes", other)


def test_a_state_with_other_arrays_names_the_version_that_wrote_it(tiny, states, tmp_path, monkeypatch, other_shapes):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.0.9")
        gorl.save_state(tmp_path / "state", states[1], tiny)
    with pytest.raises(gorl.InputError, match=r"written by gorl 0\.0\.9, whose arrays"):
        gorl.load_state(tmp_path / "state", tiny)


def test_a_state_with_other_arrays_of_this_version_names_them(tiny, states, tmp_path, other_shapes):
    gorl.save_state(tmp_path / "state", states[1], tiny)
    sentence = r"learner or the decoder, .* has changed since .*: index was int32\[\] and is int32\[3\]\. "
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.load_state(tmp_path / "state", tiny)


class ChangingState(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    wind: jax.Array


class Changing(eqx.Module):
    observation_size: int = 2
    action_size: int = 1
    episode_length: int = 20
    wind_size: int = 1

    def reset(self, key):
        return ChangingState(jnp.zeros(self.observation_size), jnp.zeros(()), jnp.zeros(()), jnp.zeros(self.wind_size))

    def step(self, state, action):
        return state


@pytest.fixture
def begun(tiny, tmp_path, monkeypatch):
    """Saves a state of a run in an environment by name; returns what changes that, and what loads the state then."""
    module = types.ModuleType("changing")
    monkeypatch.setitem(sys.modules, "changing", module)

    def change(**to):
        module.env = Changing(**to)
        gorl_env._load.cache_clear()
        jax.clear_caches()  # as in another process, which has traced nothing

    change()
    config = gorl.replace(tiny, {"env": gorl.EnvConfig("changing:env")})
    key = jax.random.key(0)

    def zeros(leaf):
        return jnp.broadcast_to(key, leaf.shape) if leaf.dtype == key.dtype else jnp.zeros(leaf.shape, leaf.dtype)

    gorl.save_state(tmp_path / "state", jax.tree.map(zeros, state_shapes(config, key)), config)
    yield change, lambda: gorl.load_state(tmp_path / "state", config)
    gorl_env._load.cache_clear()


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ({"observation_size": 3}, "it had observations of size 2 and has 3"),
        ({"action_size": 2, "episode_length": 30}, "actions of size 1 and has 2, episodes of length 20 and has 30"),
        ({"wind_size": 2}, "wind was float32[16, 1] and is float32[16, 2]"),
    ],
)
def test_an_environment_that_has_changed_is_told_from_a_version(begun, to, words):
    change, load = begun
    load()
    change(**to)
    with pytest.raises(gorl.InputError) as refused:
        load()
    sentence = str(refused.value)
    assert words in sentence
    assert "environment changing:env ha" in sentence
    assert "gorl 0" not in sentence


def test_in_64_bits_a_policy_loads_and_a_run_does_not_go_on(tiny, states, trained, tmp_path, assert_same):
    gorl.save_policy(tmp_path / "policy", trained[1], tiny)
    gorl.save_state(tmp_path / "state", states[1], tiny)
    with jax.enable_x64(True):
        loaded = gorl.load_policy(tmp_path / "policy")
        with pytest.raises(gorl.InputError, match="gorl computes in 32 bits"):
            gorl.load_state(tmp_path / "state", tiny)
    assert_same(loaded, trained[1])


def test_a_policy_of_classes_that_are_not_there_says_what_to_import(tiny, trained, tmp_path):
    path = tmp_path / "policy"
    gorl.save_policy(path, trained[1], tiny)
    path.write_bytes(path.read_bytes().replace(b'"FlowMatching"', b'"FlowMatchinh"'))
    _, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(b"\n" + rest)
    of_format(path, gorl_checkpoint._FORMAT)
    with pytest.raises(gorl.InputError, match=r"import the module .*'FlowMatching'"):
        gorl.load_policy(path)


# --- Files. ---


def test_a_missing_file(tmp_path):
    with pytest.raises(gorl.InputError, match="No such file"):
        gorl.load_policy(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    gorl.internal.write_whole(path, "old")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        gorl.internal.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_header_can_be_read_without_gorl(tiny, trained, tmp_path):
    gorl.save_policy(tmp_path / "policy", trained[1], tiny)
    header = json.loads((tmp_path / "policy").read_bytes().split(b"\n")[1])
    assert header["observation_size"] == 2
    assert gorl.Config.from_json(json.dumps(header["config"])) == tiny


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
    killed = (
        "import gorl, os, signal, sys\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "gorl.internal.write_whole(sys.argv[1], 'new')"
    )
    (tmp_path / "file").write_text("old")
    (tmp_path / ".hidden").write_text("precious")
    done = subprocess.run([sys.executable, "-c", killed, tmp_path / "file"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    gorl.internal.remove_unfinished(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old", ".hidden": "precious"}
