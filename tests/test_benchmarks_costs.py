"""The benchmark of whole runs: how its figures come about. What they are on some machine no test can say."""

import dataclasses
import json
import subprocess

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

import gorl
from benchmarks import costs


def chunks_that_take(seconds, config):
    """As `timed`, of chunks that take so many seconds by phase, and a hundred more for compilation."""

    def timed(config, start):
        for number, step in enumerate(gorl.make_schedule(config)):
            yield step, None, seconds[int(step.phase)] + 100.0 * (number == 0)

    return timed


def test_compilation_does_not_count_in_a_steady_run(tiny, monkeypatch):
    seconds = {gorl.Phase.LEARN: 1.0, gorl.Phase.EVALUATE: 0.1, gorl.Phase.REFINE: 5.0}
    monkeypatch.setattr(costs, "timed", chunks_that_take(seconds, tiny))
    phases = list(gorl.make_schedule(tiny).phase)
    expected = {phase.name.lower(): seconds[phase] * phases.count(phase) for phase in gorl.Phase}
    assert costs.steady_seconds(tiny, jax.random.key(0)) == pytest.approx(expected)


def test_runs_are_compared_by_their_medians_and_the_scale(tiny, monkeypatch, tmp_path):
    times = iter([{"learn": 2.0}, {"learn": 9.0}, {"learn": 3.0}, {"learn": 12.0}, {"learn": 50.0}, {"learn": 10.0}])
    monkeypatch.setattr(costs, "steady_seconds", lambda config, keys: next(times))
    path = tmp_path / "ratio.json"
    costs.compare("", {"one": (tiny, None), "four": (tiny, None)}, 4.0, 3, path)
    content = json.loads(path.read_text())
    assert content["ratio"] == pytest.approx(10.0 / (4 * 3.0))
    assert content["seconds"]["one"] == [{"learn": 2.0}, {"learn": 3.0}, {"learn": 50.0}]


def test_a_comparison_that_is_cut_short_leaves_what_it_had(tiny, monkeypatch, tmp_path):
    def cut_short(config, keys):
        if config.evaluation_episodes == 5:
            raise KeyboardInterrupt
        return {"learn": 2.0}

    monkeypatch.setattr(costs, "steady_seconds", cut_short)
    path = tmp_path / "ratio.json"
    longer = dataclasses.replace(tiny, evaluation_episodes=5)
    with pytest.raises(KeyboardInterrupt):
        costs.compare("", {"one": (tiny, None), "other": (longer, None)}, 1.0, 3, path)
    assert json.loads(path.read_text())["seconds"] == {"one": [{"learn": 2.0}], "other": []}


def test_a_run_that_ends_before_it_evaluates_is_no_measurement(tmp_path):
    with pytest.raises(SystemExit, match="ended with exit code 2 before it evaluated"):
        costs.first_evaluation("NoSuchTask", tmp_path, "cold")


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    command = [costs.GORL[0], "-m", "benchmarks.costs", "seeds", "--task", "PointMas", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "PointMass" in done.stderr
    assert CliRunner().invoke(costs.app, ["seeds", "--repeats", "0"]).exit_code == 2


# --- What a refinement needs, which XLA says beforehand. ---


class WideState(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Wide(eqx.Module):
    """Shows as many numbers as the larger robots do."""

    observation_size: int = 24
    action_size: int = 1

    def reset(self, key):
        return WideState(jax.random.normal(key, (self.observation_size,)), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        return WideState(0.9 * state.obs + action, state.reward, state.done)


def test_a_refinement_needs_half_as_much_memory_again_as_its_data_and_a_constant(tiny):
    changes = {"env": gorl.EnvConfig(Wide(), episode_length=2000), "refinement.num_episodes": 64}
    long = gorl.replace(tiny, changes)
    some, all_ = (costs.refinement_bytes(gorl.replace(long, {"refinement.stride": stride})) for stride in (2, 1))
    assert all_["data"] == pytest.approx(64 * 2000 * 4 * (24 + 1) / 1e6)
    assert some["data"] == pytest.approx(all_["data"] / 2)
    slope = (all_["peak"] - some["peak"]) / (all_["data"] - some["data"])
    # Beside the data: their order, and what it takes to make one. A copy of anything of theirs would be too much.
    assert 1 < slope < 1.5
    # A batch, its gradient and the environments.
    assert all_["peak"] - slope * all_["data"] < 2.0


def test_the_data_of_a_refinement_are_its_observations_and_actions(tiny):
    policy_sizes = gorl.environments()["MultiGoal"]
    pairs = tiny.refinement.num_episodes * 20
    expected = pairs * sum(policy_sizes) * jnp.dtype(jnp.float32).itemsize / 1e6
    assert costs.refinement_bytes(tiny)["data"] == pytest.approx(expected)
