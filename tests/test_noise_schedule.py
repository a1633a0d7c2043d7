import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import gorl
from gorl import NoiseSchedule

VALUES = (0.995, 0.9, 0.6, 0.3, 0.02)
KINDS = [("cosine", 10), ("cosine", 1000), ("linear", 10), ("linear", 1000), (VALUES, 5)]
every_kind = pytest.mark.parametrize(("kind", "num_levels"), KINDS, ids=["cosine", "cosine", "linear", "linear", "own"])


def cosine(time):
    return np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2


@np.vectorize
def linear(time):
    """ᾱ of a rate that rises from 0.1 at 0 to 20 at 1, by numerical integration."""
    return np.exp(-quad(lambda t: 0.1 + (20 - 0.1) * t, 0, 1e-3 + (1 - 1e-3) * time, epsabs=0, epsrel=1e-12)[0])


@every_kind
def test_levels_are_equally_spaced_from_zero_and_stop_one_short_of_one(kind, num_levels):
    times = NoiseSchedule(kind, num_levels).times
    np.testing.assert_allclose(times, np.linspace(0, 1, num_levels, endpoint=False), atol=1e-6)


@pytest.mark.parametrize(("kind", "exact"), [("cosine", cosine), ("linear", linear)])
def test_what_is_left_of_an_action_is_what_the_formula_says(kind, exact):
    times = np.linspace(0, 0.999, 50)
    alpha_bar = NoiseSchedule(kind, 10).alpha_bar(jnp.asarray(times, jnp.float32))
    # The exponent of the linear one is about 10, and the angle of cosine about π/2, where float32 loses a digit.
    np.testing.assert_allclose(alpha_bar, exact(times), rtol=2e-5, atol=1e-9)


def test_values_given_one_by_one_are_met_at_the_levels():
    schedule = NoiseSchedule(VALUES, 5)
    np.testing.assert_allclose(schedule.alpha_bar(schedule.times), VALUES, rtol=1e-5)


def test_between_values_the_noise_level_grows_by_equal_factors():
    levels = NoiseSchedule(VALUES, 5).noise_level(jnp.linspace(0.2, 0.4, 6))
    np.testing.assert_allclose(levels[1:] / levels[:-1], (levels[-1] / levels[0]) ** 0.2, rtol=1e-5)


@every_kind
def test_the_noise_level_is_the_noise_on_an_action_of_scale_one(kind, num_levels):
    schedule = NoiseSchedule(kind, num_levels)
    alpha_bar = np.float64(schedule.alpha_bar(schedule.times))
    np.testing.assert_allclose(schedule.noise_level(schedule.times), np.sqrt(1 / alpha_bar - 1), rtol=1e-3)


@every_kind
def test_noise_only_grows(kind, num_levels):
    schedule = NoiseSchedule(kind, num_levels)
    times = jnp.linspace(0.0, schedule.times[-1], 500)
    assert jnp.all(jnp.diff(schedule.alpha_bar(times)) < 0)
    assert jnp.all(jnp.diff(schedule.noise_level(times)) > 0)
    alpha_bar = schedule.alpha_bar(schedule.times)
    assert jnp.all((alpha_bar > 0) & (alpha_bar < 1))


@every_kind
def test_the_time_of_a_noise_level_is_when_it_was(kind, num_levels):
    schedule = NoiseSchedule(kind, num_levels)
    times = jnp.linspace(0.0, schedule.times[-1], 101)
    np.testing.assert_allclose(schedule.time(schedule.noise_level(times)), times, atol=1e-5)


@every_kind
def test_less_noise_than_the_first_levels_is_the_first_time(kind, num_levels):
    schedule = NoiseSchedule(kind, num_levels)
    for level in (0.0, 1e-30, 0.9 * float(schedule.noise_level(jnp.zeros(())))):
        assert schedule.time(jnp.asarray(level)) == 0


@every_kind
def test_times_have_gradients_down_to_no_noise(kind, num_levels):
    # A policy is differentiated through them by a learner that asks for the gradient of an action.
    gradient = jax.vmap(jax.grad(NoiseSchedule(kind, num_levels).time))(jnp.array([0.0, 1e-3, 1.0, 5.0]))
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("values", [(1.0, 0.5), (0.9, 1e-50), (0.9, 0.9 - 1e-9), (0.5, float("nan"))])
def test_values_that_single_precision_cannot_tell_apart_are_refused(values):
    with pytest.raises(gorl.InputError, match="must fall"):
        gorl.Config("PointMass", decoder=gorl.Diffusion(schedule=values, num_levels=2))


@pytest.mark.parametrize("kind", [None, 3.0, ("high", "low")])
def test_a_schedule_that_is_neither_name_nor_numbers_is_refused(unchecked, kind):
    with pytest.raises(gorl.InputError, match=r"decoder\.schedule must be a name or the values"):
        gorl.Diffusion(schedule=kind)


def test_a_schedule_may_be_any_sequence_of_numbers():
    values = np.linspace(0.9, 0.1, 10)
    config = gorl.Config("PointMass", decoder=gorl.Diffusion(schedule=values))
    assert config == gorl.Config.from_json(config.to_json())
