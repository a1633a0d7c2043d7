"""Demonstrations on disk."""

import json

import numpy as np
import pytest

import gorl
from gorl_cli._data import Data, read_data

OBSERVATIONS = np.arange(12.0, dtype=np.float32).reshape(6, 2)
ACTIONS = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]


def test_what_is_written_is_read(tmp_path):
    demonstrations = gorl.Demonstrations(OBSERVATIONS, ACTIONS, (2, 4))
    path = tmp_path / "data.npz"
    path.write_bytes(Data("", demonstrations, np.array([1.0, 2.0], np.float32), "MultiGoal").encode())
    found = read_data(str(path))
    assert found.demonstrations.episode_lengths == (2, 4)
    np.testing.assert_array_equal(found.demonstrations.observations, OBSERVATIONS)
    np.testing.assert_array_equal(found.demonstrations.actions, ACTIONS)
    np.testing.assert_array_equal(found.returns, [1, 2])
    assert found.environment == "MultiGoal"


def test_episodes_of_one_length_need_no_lengths(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, observations=OBSERVATIONS.reshape(2, 3, 2), actions=ACTIONS.reshape(2, 3, 1))
    found = read_data(str(path))
    assert found.demonstrations.episode_lengths == (3, 3)
    np.testing.assert_array_equal(found.demonstrations.observations, OBSERVATIONS)
    assert found.returns is None
    assert found.environment is None


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"actions": ACTIONS}, "holds no array called observations, only actions"),
        ({}, "holds no array called observations, nothing"),
        ({"observations": OBSERVATIONS, "actions": ACTIONS}, "does not say where episodes end: add episode_lengths"),
        (
            {"observations": OBSERVATIONS, "actions": ACTIONS, "episode_lengths": [2.5, 3.5]},
            "must be a row of whole numbers",
        ),
        ({"observations": OBSERVATIONS.astype(str), "actions": ACTIONS}, "observations in .* are of type <U32"),
    ],
)
def test_files_that_say_too_little_are_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(gorl.InputError, match=sentence):
        read_data(str(tmp_path / "data.npz"))


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(gorl.InputError, match="there is no file"):
        read_data(str(tmp_path / "nothing.npz"))
    np.save(tmp_path / "one.npy", OBSERVATIONS)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text(json.dumps({"observations": []}))
    for name in ("one.npy", "empty.npz", "text.npz"):
        with pytest.raises(gorl.InputError, match=r"is no \.npz file of arrays"):
            read_data(str(tmp_path / name))
    with pytest.raises(gorl.InputError, match="cannot be read"):
        read_data(str(tmp_path))


# --- Minari. ---


@pytest.fixture
def minari_data(tmp_path, monkeypatch):
    """Makes a data set of two episodes whose actions lie between -2 and 4, and returns its name."""
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))

    def make(high=4.0, observation_space=None):
        box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        buffers = [
            minari.data_collector.EpisodeBuffer(
                observations=[*OBSERVATIONS[:length], np.full(2, 99, np.float32)],
                actions=[np.array([value], np.float32) for value in np.linspace(-2, 4, length)],
                rewards=[1.0] * length,
                terminations=[False] * length,
                truncations=[False] * (length - 1) + [True],
                infos=None,
            )
            for length in (3, 5)
        ]
        minari.create_dataset_from_buffers(
            "own/task-v0",
            buffers,
            observation_space=observation_space or box,
            action_space=gymnasium.spaces.Box(np.float32(-2), np.float32(high), (1,), np.float32),
        )
        return "minari:own/task-v0"

    return make


def test_a_data_set_of_minari_is_scaled_to_the_limits_of_its_actions(minari_data):
    found = read_data(minari_data())
    assert found.demonstrations.episode_lengths == (3, 5)
    # Without the observation after the last action.
    np.testing.assert_array_equal(
        found.demonstrations.observations, np.concatenate([OBSERVATIONS[:3], OBSERVATIONS[:5]])
    )
    np.testing.assert_allclose(found.demonstrations.actions[:, 0], [-1, 0, 1, -1, -0.5, 0, 0.5, 1], atol=1e-6)
    np.testing.assert_array_equal(found.returns, [3, 5])


def test_data_sets_of_minari_that_cannot_be_used_are_refused(minari_data):
    with pytest.raises(
        gorl.InputError, match=r"own/task-v0 of Minari is not on this machine\. Get it with minari download"
    ):
        read_data("minari:own/task-v0")
    name = minari_data(high=np.inf)
    with pytest.raises(gorl.InputError, match="have no limits"):
        read_data(name)
    with pytest.raises(gorl.InputError, match="not on this machine; here are own/task-v0"):
        read_data("minari:own/other-v0")
