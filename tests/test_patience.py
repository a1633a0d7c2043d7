"""Stages that end when their evaluations stop rising."""

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl._patience import is_left_out


def steps_of(schedule, phase):
    return [step for step in schedule if step.phase == phase]


def by_hand(config, stages, mean_returns, has_been, stage):
    """Whether a stage is over, in a loop."""
    known = [value for value, seen, of in zip(mean_returns, has_been, stages, strict=True) if seen and of == stage]
    if len(known) <= config.stage_patience:
        return False
    finite = [value if math.isfinite(value) else -math.inf for value in known]
    before, latest = max(finite[: -config.stage_patience]), max(finite[-config.stage_patience :])
    return math.isfinite(before) and latest <= before + config.stage_margin * abs(before)


@pytest.fixture(scope="module")
def patient(tiny):
    return gorl.replace(tiny, {"stage_patience": 2, "stage_margin": 0.1, "evaluation_interval": 160})


def test_it_is_what_a_loop_finds(patient):
    schedule = gorl.make_schedule(patient)
    stages = schedule.curve.stage
    learn = steps_of(schedule, gorl.Phase.LEARN)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        count = generator.integers(1, len(stages))
        returns = generator.normal(size=(len(stages) + 1, 1)).astype(np.float32)
        returns[generator.random(len(returns)) < 0.1] = np.nan
        evaluated_at = np.where(np.arange(len(returns)) < count, 1, -1)
        step = learn[0] if stages[count - 1] == 0 else learn[-1]
        is_over = is_left_out(patient, schedule, jnp.asarray(evaluated_at), jnp.asarray(returns), step)
        expected = by_hand(patient, stages, returns[:-1, 0], evaluated_at[:-1] >= 0, int(step.stage))
        assert bool(is_over) == expected
        found.append(expected)
    assert 20 < sum(found) < 180


def test_refinements_and_the_last_evaluation_are_never_left_out(patient):
    schedule = gorl.make_schedule(patient)
    evaluated_at, returns = jnp.zeros(schedule.num_evaluations, jnp.int32), jnp.zeros((schedule.num_evaluations, 1))

    def is_over(step):
        return bool(is_left_out(patient, schedule, evaluated_at, returns, step))

    assert all(is_over(step) for step in steps_of(schedule, gorl.Phase.LEARN))
    assert not any(is_over(step) for step in steps_of(schedule, gorl.Phase.REFINE))
    assert [is_over(step) for step in steps_of(schedule, gorl.Phase.EVALUATE)][-2:] == [True, False]


def test_seeds_decide_together_by_their_mean_and_without_a_batch_axis(patient):
    schedule = gorl.make_schedule(patient)
    step = steps_of(schedule, gorl.Phase.LEARN)[0]
    stages = schedule.curve.stage
    assert (stages[:5] == 0).all()
    rising, falling = np.arange(len(stages) + 1.0), -np.arange(len(stages) + 1.0)
    evaluated_at = jnp.broadcast_to(jnp.where(jnp.arange(len(rising)) < 4, 1, -1), (3, len(rising)))

    def together(*seeds):
        def of_seed(evaluated_at, returns):
            return is_left_out(patient, schedule, evaluated_at, returns, step)

        # With out_axes=None, vmap raises if the decision has a batch axis.
        decide = jax.jit(jax.vmap(of_seed, out_axes=None))
        return bool(decide(evaluated_at, jnp.asarray(np.stack(seeds), jnp.float32)[..., None]))

    assert not together(rising, rising, falling)
    assert together(falling, falling, rising)
    assert not together(rising, np.full_like(rising, np.nan), np.full_like(rising, np.nan))


@pytest.fixture(scope="module")
def flat(patient, counting):
    """On a task whose every episode returns the same, in two stages of five iterations."""
    config = gorl.replace(patient, {"env": gorl.EnvConfig(counting()), "stage_margin": 0.0})
    return config, gorl.train(config, jax.random.key(0))


def test_a_stage_that_does_not_rise_ends_and_the_next_begins(flat):
    config, result = flat
    curve = result.curve
    # It is evaluated as it begins, and twice more without a rise.
    done = np.asarray(curve.iterations)
    assert done.tolist() == [0, 1, 2, -1, -1, -1, 2, 3, 4, -1, -1, -1]
    assert curve.env_steps.tolist() == [n * config.steps_per_iteration if n >= 0 else -1 for n in done]
    assert (np.isfinite(curve.mean_return) == (done >= 0)).all()
    assert np.isfinite(result.fits.validation_loss).all()  # it was refined
    assert bool(result.policy.decoder.fitted)
    np.testing.assert_allclose(result.returns, np.sum(np.arange(1, 11)))


def test_the_callback_is_told_the_steps_that_were_done(flat):
    config, result = flat
    seen = []

    def on_evaluation(record):
        seen.append((record.stage, record.env_steps, record.is_final))

    jax.block_until_ready(gorl.train(config, jax.random.key(0), on_evaluation))
    jax.effects_barrier()
    steps = [steps for steps in result.curve.env_steps.tolist() if steps >= 0]
    assert [env_steps for _, env_steps, _ in seen] == [*steps, steps[-1]]
    assert [stage for stage, _, _ in seen] == [0] * 3 + [1] * 4


def test_patience_that_never_runs_out_changes_nothing(tiny, assert_same):
    without = gorl.train(tiny, jax.random.key(3))
    patient = gorl.train(gorl.replace(tiny, {"stage_patience": 100}), jax.random.key(3))
    np.testing.assert_array_equal(patient.curve.iterations, without.curve.iterations)
    np.testing.assert_allclose(patient.curve.returns, without.curve.returns, rtol=1e-4, atol=1e-4)


def test_vmap_and_iterate_leave_the_same_out_and_a_run_goes_on(patient, tmp_path, assert_same):
    config = gorl.replace(patient, {"stage_patience": 1, "stage_margin": 0.3})
    keys = jax.random.split(jax.random.key(2), 2)
    mapped = jax.vmap(gorl.train, in_axes=(None, 0))(config, keys)
    states = [state for _, state in gorl.iterate(config, keys)]
    done = np.asarray(mapped.curve.iterations)
    assert (done == -1).any()  # something was left out
    assert (done[0] == done[1]).all()
    np.testing.assert_array_equal(states[-1].evaluated_at[:, :-1], done)
    np.testing.assert_allclose(states[-1].returns[:, :-1], mapped.curve.returns, rtol=1e-3, atol=1e-3)
    middle = len(states) // 2
    gorl.save_state(tmp_path / "state.eqx", states[middle], config)
    state, _ = gorl.load_state(tmp_path / "state.eqx", config)
    *_, (_, last) = gorl.iterate(config, state)
    assert_same(last, states[-1])


def test_a_longer_run_goes_on_after_what_was_left_out(flat):
    config, _ = flat
    *_, (_, state) = gorl.iterate(config, jax.random.key(0))
    longer = gorl.lengthen(config, 2400)
    *_, (_, last) = gorl.iterate(longer, gorl.extend(config, state, longer))
    expected = [0, 1, 2, -1, -1, -1, 2, 3, 4, -1, -1, -1, 4, 5, 6, -1, -1, -1]
    assert last.evaluated_at[:-1].tolist() == expected


@pytest.mark.parametrize(("field", "value"), [("stage_patience", 0), ("stage_margin", -0.1)])
def test_bad_values_are_refused(tiny, field, value):
    with pytest.raises(gorl.InputError, match=f"{field} must be"):
        gorl.replace(tiny, {field: value})


def test_the_command_line_shows_what_was_done(command, tmp_path):
    from test_cli import SMALL

    small = [option for option in SMALL if "stage_steps" not in option]
    patience = ["--set", "stage_patience=1", "--set", "stage_margin=100", "--set", "evaluation_interval=80"]
    code, output, _ = command(
        "train", "MultiGoal", "--seeds", 2, "--out", tmp_path / "run", *small, *patience, "--set", "stage_steps=800,800"
    )
    assert code == 0
    with (tmp_path / "run" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["env_steps"]) for row in rows if row["seed"] == "0"] == [
        ("0", "0"),
        ("0", "80"),
        ("1", "80"),
        ("1", "160"),
    ]
    assert all(math.isfinite(float(row["return_mean"])) for row in rows)
    assert "│     0 │        80 │" in output
    assert "│     1 │        80 │" in output
