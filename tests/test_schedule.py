import numpy as np
import pytest

import gorl
from gorl import Phase

CASES = [(800,), (800, 800), (800, 160, 480, 320)]


def make(tiny, stage_steps):
    changes = {"stage_steps": stage_steps}
    if len(stage_steps) == 1:
        changes["decoder"] = gorl.Identity()
    return gorl.replace(tiny, changes)


@pytest.mark.parametrize("stage_steps", CASES)
def test_every_stage_begins_and_ends_with_an_evaluation(tiny, stage_steps):
    steps = gorl.make_schedule(make(tiny, stage_steps)).steps
    for stage in range(len(stage_steps)):
        phases = steps.phase[(steps.stage == stage) & (steps.phase != Phase.REFINE)]
        assert phases[0] == phases[-1] == Phase.EVALUATE


@pytest.mark.parametrize("stage_steps", CASES)
def test_every_stage_but_the_last_ends_with_a_refinement(tiny, stage_steps):
    steps = gorl.make_schedule(make(tiny, stage_steps)).steps
    refined = steps.stage[steps.phase == Phase.REFINE]
    assert refined.tolist() == list(range(len(stage_steps) - 1))
    for index in np.flatnonzero(steps.phase == Phase.REFINE):
        assert steps.stage[index + 1] == steps.stage[index] + 1


@pytest.mark.parametrize("stage_steps", CASES)
def test_iterations_are_those_of_the_config(tiny, stage_steps):
    config = make(tiny, stage_steps)
    steps = gorl.make_schedule(config).steps
    learning = steps.phase == Phase.LEARN
    assert tuple(np.bincount(steps.stage[learning])) == config.stage_iterations
    assert steps.iterations[learning].tolist() == list(range(1, sum(config.stage_iterations) + 1))
    assert steps.index.tolist() == list(range(len(steps.index)))


@pytest.mark.parametrize("stage_steps", CASES)
def test_progress_goes_from_the_first_iteration_of_the_run_towards_its_end(tiny, stage_steps):
    config = make(tiny, stage_steps)
    steps = gorl.make_schedule(config).steps
    count = sum(config.stage_iterations)
    np.testing.assert_allclose(steps.progress[steps.phase == Phase.LEARN], np.arange(count) / count, rtol=1e-6)
    refinements = np.cumsum(config.stage_iterations)[:-1] / count
    np.testing.assert_allclose(steps.progress[steps.phase == Phase.REFINE], refinements, rtol=1e-6)
    evaluated = steps.progress[steps.phase == Phase.EVALUATE]
    assert (evaluated[0], evaluated[-1]) == (0, 1)


@pytest.mark.parametrize("stage_steps", CASES)
def test_only_the_last_evaluation_is_of_the_best_policy(tiny, stage_steps):
    steps = gorl.make_schedule(make(tiny, stage_steps)).steps
    assert np.flatnonzero(steps.is_final).tolist() == [len(steps.index) - 1]
    assert steps.phase[-1] == Phase.EVALUATE
    evaluations = steps.evaluation[steps.phase == Phase.EVALUATE]
    assert evaluations.tolist() == list(range(len(evaluations)))


def test_evaluations_come_at_the_interval(tiny):
    # Five iterations of 160 steps in a stage, an evaluation every two of them, and at both ends.
    steps = gorl.make_schedule(tiny).steps
    seen = steps.iterations[(steps.phase == Phase.EVALUATE) & (steps.stage == 0)]
    assert seen.tolist() == [0, 2, 4, 5]
