"""Runs that get longer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl

KEY = jax.random.key(3)


def states(config, start):
    """Every state of a run, by how many chunks are done."""
    return {int(np.max(state.index)): state for _, state in gorl.iterate(config, start)}


def without_decoder(tiny):
    """One stage of five iterations, evaluated after every two, so that its end is no multiple of the interval."""
    return gorl.replace(tiny, {"stage_steps": (800,), "decoder": gorl.Identity()})


# --- The config. ---


@pytest.mark.parametrize(
    ("total", "stages"),
    [
        (2_400, (800, 800, 800)),
        (3_201, (800, 800, 800, 801)),
        (2_000, (800, 800, 400)),
        (2_900, (800, 800, 650, 650)),
    ],
)
def test_stages_like_the_last_are_added(tiny, total, stages):
    longer = gorl.lengthen(tiny, total)
    assert longer == gorl.replace(tiny, {"stage_steps": stages})
    assert sum(longer.stage_steps) == total


def test_without_a_decoder_the_stage_gets_longer_and_is_evaluated_where_it_ended(tiny):
    longer = gorl.lengthen(gorl.lengthen(without_decoder(tiny), 1_280), 1_600)
    assert longer.stage_steps == (1_600,)
    evaluated = gorl.make_schedule(longer).curve.iterations
    assert evaluated.tolist() == [0, 2, 4, 5, 6, 8, 10]
    assert gorl.Config.from_json(longer.to_json()) == longer


@pytest.mark.parametrize("total", [0, 1_600, 1_759])
def test_a_run_does_not_get_shorter(tiny, total):
    with pytest.raises(gorl.InputError, match="give at least 1,760 steps"):
        gorl.lengthen(tiny, total)


# --- The state. ---


@pytest.mark.parametrize("make", [lambda tiny: tiny, without_decoder], ids=["stages", "one stage"])
def test_a_finished_run_goes_on_bit_for_bit_like_one_that_began_longer(tiny, make, assert_same):
    config = make(tiny)
    longer = gorl.lengthen(config, sum(config.stage_steps) + 800)
    shorter, unbroken = states(config, KEY), states(longer, KEY)
    begin = gorl.extend(config, shorter[max(shorter)], longer)
    assert int(begin.index) == max(shorter) - 1  # but for the evaluation of the best policy
    assert_same(begin, unbroken[max(shorter) - 1])
    extended = states(longer, begin)
    assert extended.keys() == set(range(max(shorter), max(unbroken) + 1))
    assert_same(gorl.finish(longer, extended[max(extended)]), gorl.finish(longer, unbroken[max(unbroken)]))
    # From any other state on as well, of several seeds as of one.
    assert_same(gorl.extend(config, shorter[4], longer), unbroken[4])
    several, expected = (jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), states[4]) for states in (shorter, unbroken))
    assert_same(gorl.extend(config, several, longer), expected)


def test_what_has_annealed_stays_and_the_rest_anneals_towards_the_new_end(tiny, assert_same):
    config = gorl.replace(tiny, {"learner.learning_rate_decay": 0.9})
    longer = gorl.lengthen(config, 2_400)
    shorter = states(config, KEY)
    last = shorter[max(shorter)]
    *_, end = states(longer, gorl.extend(config, last, longer)).values()
    num_evaluations = len(last.returns) - 1
    np.testing.assert_array_equal(end.returns[:num_evaluations], last.returns[:-1])
    assert_same(jax.tree.map(lambda leaf: leaf[:1], end.fits), last.fits)
    *_, unbroken = states(longer, KEY).values()
    assert not np.array_equal(end.returns, unbroken.returns)


@pytest.mark.parametrize(
    "changes",
    [
        {"stage_steps": (800,)},
        {"stage_steps": (800, 960)},
        {"stage_steps": (640, 800, 800)},
        {"stage_steps": (800, 800, 800), "learner.clip_epsilon": 0.5},
        {"stage_steps": (800, 800, 800), "evaluation_interval": 160},
        {"stage_steps": (800, 800, 800), "extra_evaluations": (480,)},
    ],
)
def test_only_what_comes_after_the_end_may_change(tiny, changes):
    state = next(gorl.iterate(tiny, KEY))[1]
    with pytest.raises(gorl.InputError, match="adds to its end"):
        gorl.extend(tiny, state, gorl.replace(tiny, changes))


def test_a_state_of_another_config_is_refused(tiny):
    state = next(gorl.iterate(tiny, KEY))[1]
    longer = gorl.lengthen(tiny, 2_400)
    with pytest.raises(gorl.InputError, match="not one of a run with this config"):
        gorl.extend(longer, state, gorl.lengthen(longer, 3_200))
