"""The benchmark of whole runs: how its numbers come about. What they are on a machine no test can say."""

import dataclasses
import json

import answering
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import gorl
from benchmarks import costs


def steps_that_take(seconds):
    """As `timed`, with given seconds for the steps of each phase, and a hundred more for compiling."""

    def timed(config, start):
        for number, step in enumerate(gorl.make_schedule(config)):
            yield step, None, seconds[int(step.phase)] + 100.0 * (number == 0)

    return timed


def test_compilation_does_not_count_in_a_steady_run(tiny, monkeypatch):
    seconds = {gorl.Phase.LEARN: 1.0, gorl.Phase.EVALUATE: 0.1, gorl.Phase.REFINE: 5.0}
    monkeypatch.setattr(costs, "timed", steps_that_take(seconds))
    phases = list(gorl.make_schedule(tiny).steps.phase)
    expected = {phase.name.lower(): seconds[phase] * phases.count(phase) for phase in gorl.Phase}
    assert costs.steady_seconds(tiny, jax.random.key(0)) == pytest.approx(expected)


def test_runs_are_compared_by_their_medians_and_the_scale(tiny, monkeypatch, tmp_path):
    times = iter([{"learn": 2.0}, {"learn": 9.0}, {"learn": 3.0}, {"learn": 12.0}, {"learn": 50.0}, {"learn": 10.0}])
    monkeypatch.setattr(costs, "steady_seconds", lambda config, keys: next(times))
    path = tmp_path / "ratio.json"
    costs.compare("", {"one": (tiny, None), "four": (tiny, None)}, 4.0, 3, path)
    content = json.loads(path.read_text())
    assert content["ratio"] == content["ratios"]["one"] == pytest.approx(10.0 / (4 * 3.0))
    assert content["repeats"] == 3
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


def test_gorl_is_compared_with_ppo_of_both_entropies(monkeypatch, tmp_path):
    def steady_seconds(config, start):
        is_staged = config.num_stages == 2
        configs["GoRL" if is_staged else config.learner.on_actions] = config
        return {"learn": 6.0 if is_staged else 4.0 if config.learner.on_actions else 3.0}

    configs = {}
    monkeypatch.setattr(costs, "steady_seconds", steady_seconds)
    code, out, _ = answering.run(costs.app, "decoder", "--repeats", 1, "--out", tmp_path)
    assert code == 0
    content = json.loads((tmp_path / "decoder_PointMass.json").read_text())
    assert content["ratio"] == 1.5
    assert content["ratios"] == {"Gaussian PPO": 1.5, "Gaussian PPO, entropy in closed form": 2.0}
    assert "2.00" in out
    # The two are alike but for the entropy, and have the networks, the updates and the budget of the staged run.
    quadrature, closed_form, staged = configs[True], configs[False], configs["GoRL"]
    assert gorl.replace(closed_form, {"learner.on_actions": True}) == quadrature
    assert closed_form.learner == staged.learner
    assert closed_form.stage_steps == (sum(staged.stage_steps),)
    assert isinstance(closed_form.decoder, gorl.Identity)


def test_the_start_is_measured_cold_and_warm(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(costs, "timed_process", lambda *command: ("", 0.5))
    monkeypatch.setattr(costs, "first_evaluation", lambda task, scratch, name: seen.append((scratch, name)) or 2.0)
    assert answering.run(costs.app, "start", "--repeats", 2, "--out", tmp_path)[0] == 0
    content = json.loads((tmp_path / "start_PointMass.json").read_text())
    assert content["seconds"]["first evaluation, warm"] == [2.0, 2.0]
    assert content["seconds"]["import gorl"] == [0.5, 0.5]
    assert [name for _, name in seen] == ["cold", "warm"] * 2
    assert seen[0][0] == seen[1][0] != seen[2][0]  # the warm one finds what the cold one before it has compiled


def test_stages_are_compared_by_the_seconds_of_compiling(monkeypatch, tmp_path):
    def compiled(function, config, key):
        budgets.append(sum(config.stage_steps))
        return None, 10.0 if config.num_stages == 2 else 11.0

    budgets = []
    monkeypatch.setattr(costs, "compiled", compiled)
    monkeypatch.setattr(costs.jax, "clear_caches", lambda: None)
    code, out, _ = answering.run(costs.app, "stages", "--repeats", 1, "--out", tmp_path)
    assert code == 0
    assert "1.10" in out
    assert len(set(budgets)) == 1
    assert json.loads((tmp_path / "stages_PointMass.json").read_text())["seconds"] == {
        "2 stages": [10.0],
        "10 stages": [11.0],
    }


def test_the_memory_of_a_refinement_is_a_line_over_its_data(monkeypatch, tmp_path):
    def refinement_megabytes(config):
        data = 8.0 / config.refinement.stride
        return {"data": data, "peak": 1.5 * data + 16}

    monkeypatch.setattr(costs, "refinement_megabytes", refinement_megabytes)
    assert answering.run(costs.app, "memory", "--out", tmp_path)[0] == 0
    content = json.loads((tmp_path / "memory_CartpoleSwingup.json").read_text())
    assert (content["slope"], content["constant"]) == (1.5, 16.0)
    assert set(content["megabytes_by_stride"]) == {"8", "4", "2", "1"}


# --- What a refinement needs, which XLA says beforehand. ---


class WideState(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array


class Wide(eqx.Module):
    """Has observations of the size of larger robots'."""

    observation_size: int = 24
    action_size: int = 1

    def reset(self, key):
        return WideState(jax.random.normal(key, (self.observation_size,)), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        return WideState(0.9 * state.obs + action, state.reward, state.done)


def test_a_refinement_needs_half_as_much_memory_again_as_its_data_and_a_constant(tiny):
    changes = {"env": gorl.EnvConfig(Wide(), episode_length=2000), "refinement.num_episodes": 64}
    long = gorl.replace(tiny, changes)
    some, all_ = (costs.refinement_megabytes(gorl.replace(long, {"refinement.stride": stride})) for stride in (2, 1))
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
    assert costs.refinement_megabytes(tiny)["data"] == pytest.approx(expected)
