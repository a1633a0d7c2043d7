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
    chunks = gorl.schedule(make(tiny, stage_steps))
    for stage in range(len(stage_steps)):
        phases = chunks.phase[(chunks.stage == stage) & (chunks.phase != Phase.REFINE)]
        assert phases[0] == phases[-1] == Phase.EVALUATE


@pytest.mark.parametrize("stage_steps", CASES)
def test_every_stage_but_the_last_ends_with_a_refinement(tiny, stage_steps):
    chunks = gorl.schedule(make(tiny, stage_steps))
    refined = chunks.stage[chunks.phase == Phase.REFINE]
    assert refined.tolist() == list(range(len(stage_steps) - 1))
    for position in np.flatnonzero(chunks.phase == Phase.REFINE):
        assert chunks.stage[position + 1] == chunks.stage[position] + 1


@pytest.mark.parametrize("stage_steps", CASES)
def test_iterations_are_those_of_the_config(tiny, stage_steps):
    config = make(tiny, stage_steps)
    chunks = gorl.schedule(config)
    learning = chunks.phase == Phase.LEARN
    assert tuple(np.bincount(chunks.stage[learning])) == config.stage_iterations
    assert chunks.iterations[learning].tolist() == list(range(1, sum(config.stage_iterations) + 1))
    assert chunks.position.tolist() == list(range(len(chunks)))


@pytest.mark.parametrize("stage_steps", CASES)
def test_progress_goes_from_the_first_iteration_of_the_run_towards_its_end(tiny, stage_steps):
    config = make(tiny, stage_steps)
    chunks = gorl.schedule(config)
    count = sum(config.stage_iterations)
    np.testing.assert_allclose(chunks.progress[chunks.phase == Phase.LEARN], np.arange(count) / count, rtol=1e-6)
    refinements = np.cumsum(config.stage_iterations)[:-1] / count
    np.testing.assert_allclose(chunks.progress[chunks.phase == Phase.REFINE], refinements, rtol=1e-6)
    evaluated = chunks.progress[chunks.phase == Phase.EVALUATE]
    assert (evaluated[0], evaluated[-1]) == (0, 1)


@pytest.mark.parametrize("stage_steps", CASES)
def test_only_the_last_evaluation_is_of_the_kept_policy(tiny, stage_steps):
    chunks = gorl.schedule(make(tiny, stage_steps))
    assert np.flatnonzero(chunks.is_final).tolist() == [len(chunks) - 1]
    assert chunks.phase[-1] == Phase.EVALUATE
    evaluations = chunks.evaluation[chunks.phase == Phase.EVALUATE]
    assert evaluations.tolist() == list(range(len(evaluations)))


def test_evaluations_come_at_the_interval(tiny):
    # Five iterations of 160 steps in a stage, an evaluation every two of them, and at both ends.
    chunks = gorl.schedule(tiny)
    seen = chunks.iterations[(chunks.phase == Phase.EVALUATE) & (chunks.stage == 0)]
    assert seen.tolist() == [0, 2, 4, 5]
