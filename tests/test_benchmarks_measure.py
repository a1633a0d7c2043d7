"""How the benchmarks measure."""

import sys

import jax
import pytest

import gorl
from benchmarks import _measure


def test_runs_are_measured_in_turns_and_left_after_each():
    order, left = [], []

    def run(name):
        order.append(name)
        return len(order)

    found = _measure.in_turns(
        {name: lambda name=name: run(name) for name in ("one", "two")},
        2,
        lambda found: left.append({name: list(of_name) for name, of_name in found.items()}),
    )
    assert order == ["one", "two", "one", "two"]
    assert found == left[-1] == {"one": [1, 3], "two": [2, 4]}
    assert left[0] == {"one": [1], "two": []}


def test_a_process_that_fails_is_named(capfd):
    with pytest.raises(SystemExit, match=r"ended with exit code 7; its output is above\."):
        _measure.timed_process(sys.executable, "-c", "print('why'); raise SystemExit(7)")
    assert "why" in capfd.readouterr().err


def test_a_process_is_timed_from_start_to_end():
    printed, took = _measure.timed_process(sys.executable, "-c", "import time; time.sleep(0.3); print('done')")
    assert printed == "done\n"
    assert took > 0.3


def test_every_step_of_the_schedule_is_timed_and_nothing_compiles_after_the_first(tiny, compilations):
    seen = []
    for step, state, seconds in _measure.timed(tiny, jax.random.key(0)):
        seen.append((int(step.index), len(compilations)))
        assert seconds > 0
        assert isinstance(state, gorl.TrainState)
    assert [index for index, _ in seen] == list(range(len(gorl.make_schedule(tiny))))
    assert len({count for _, count in seen}) == 1


def test_a_rollout_is_of_episodes_under_way_and_of_one_iteration(tiny):
    env = gorl.load_environment(tiny.env)
    policy = _measure.fresh_policy(tiny, env)
    assert bool(policy.decoder.fitted)
    assert not bool(_measure.fresh_policy(tiny, env, is_fitted=False).decoder.fitted)
    program, arguments, experience, compiling = _measure.rollout_program(tiny, env, policy)
    assert experience.reward.size == tiny.steps_per_iteration
    assert compiling > 0
    _, again = program(*arguments)
    assert again.reward.shape == experience.reward.shape


def test_physics_is_by_mujocos_engine_where_that_simulates():
    playground = gorl.load_environment(gorl.EnvConfig("PointMass"))
    on_cpu = jax.default_backend() == "cpu"
    assert (_measure.engine_seconds(gorl.EnvConfig("PointMass"), playground, 2, 3) is not None) == on_cpu
    assert _measure.engine_seconds(gorl.EnvConfig("PointMass", implementation="mujoco"), playground, 2, 3) > 0
    assert _measure.engine_seconds(gorl.EnvConfig("PointMass", implementation="jax"), playground, 2, 3) is None
    goals = gorl.EnvConfig("MultiGoal")
    assert _measure.engine_seconds(goals, gorl.load_environment(goals), 2, 3) is None
