import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

import gorl
from gorl import Diffusion, Integrator, RunningStatistics

OBSERVATION_SIZE, ACTION_SIZE = 3, 2
LATENT = jnp.array([1.0, -2.0])
OBSERVATION = jnp.array([6.0, 0.0, 0.0])
NORMALISED = np.array([1.5, -1.5, -1.5])


def fresh(**options):
    statistics = RunningStatistics(jnp.array(100.0), jnp.full(OBSERVATION_SIZE, 3.0), jnp.full(OBSERVATION_SIZE, 4.0))
    return Diffusion(**options).init(statistics, ACTION_SIZE, jax.random.key(0))


def with_integrator(decoder, *arguments):
    return dataclasses.replace(decoder, integrator=Integrator(*arguments))


@pytest.fixture
def random_diffusion(shaken):
    """Makes a diffusion decoder with a smooth random field."""

    def make(**options):
        decoder = fresh(width=16, depth=2, **options)
        return eqx.tree_at(lambda d: d.noise, decoder, shaken(decoder.noise))

    return make


@eqx.filter_jit
def decode(decoder):
    return decoder.decode(OBSERVATION, LATENT)


@eqx.filter_jit
def loss_of(decoder, action, key):
    return decoder.loss(OBSERVATION, LATENT, action, key)


# --- Sampling. ---

OWN = (0.99, 0.9, 0.6, 0.3, 0.05)


def cosine(time):
    return np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2


def linear(time):
    """ᾱ of a rate that rises from 0.1 to 20, by numerical integration."""
    return np.exp(-quad(lambda t: 0.1 + 19.9 * t, 0, 1e-3 + 0.999 * time, epsabs=0, epsrel=1e-12)[0])


def own(time):
    """`OWN` at the five levels, and between them noise that grows by equal factors."""
    ratios = np.log(1 / np.array(OWN) - 1)
    return 1 / (1 + np.exp(np.interp(time, np.arange(5) / 5, ratios)))


def ddim(noise, alpha_bar, num_levels, num_steps):
    """Song et al. (2021), equation (12) without noise of its own, as it stands there."""
    times = np.linspace((num_levels - 1) / num_levels, 0, num_steps)
    left = [*map(alpha_bar, times), 1.0]
    point = np.float64(LATENT)
    for time, now, then in zip(times, left[:-1], left[1:], strict=True):
        predicted = noise(point, time)
        clean = (point - np.sqrt(1 - now) * predicted) / np.sqrt(now)
        point = np.sqrt(then) * clean + np.sqrt(1 - then) * predicted
    return point


@pytest.mark.parametrize(
    ("schedule", "alpha_bar", "num_levels", "num_steps"),
    [
        ("cosine", cosine, 10, 10),
        ("cosine", cosine, 10, 4),
        ("cosine", cosine, 10, 1),
        ("linear", linear, 10, 10),
        ("linear", linear, 20, 13),
        (OWN, own, 5, 5),
        (OWN, own, 5, 12),
    ],
)
def test_euler_steps_of_a_diffusion_are_ddim(
    schedule, alpha_bar, num_levels, num_steps, random_diffusion, written_out_field
):
    decoder = random_diffusion(schedule=schedule, num_levels=num_levels, solver="Euler", num_steps=num_steps)
    expected = ddim(written_out_field(decoder.noise, NORMALISED), alpha_bar, num_levels, num_steps)
    np.testing.assert_allclose(decode(decoder), expected, rtol=3e-5, atol=1e-4)


def probability_flow(noise, alpha_bar, rate, last):
    """Song et al. (2021, SDEs), equation (13), from the last level to the first, and from there to no noise."""

    def drift(time, point):
        return -0.5 * rate(time) * (point - noise(point, time) / np.sqrt(1 - alpha_bar(time)))

    def solve(field, start, end, point):
        return solve_ivp(field, (start, end), point, "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]

    first = alpha_bar(0.0)
    point = solve(drift, last, 0.0, np.float64(LATENT))
    return solve(
        lambda level, scaled: noise(scaled / np.sqrt(1 + level**2), 0.0),
        np.sqrt(1 / first - 1),
        0.0,
        point / np.sqrt(first),
    )


def cosine_rate(time):
    return np.pi / 1.008 * np.tan((time + 0.008) / 1.008 * np.pi / 2)


def linear_rate(time):
    return 0.999 * (0.1 + 19.9 * (1e-3 + 0.999 * time))


def closed_linear(time):
    t = 1e-3 + 0.999 * time
    return np.exp(-0.1 * t - 9.95 * t**2)


@pytest.mark.parametrize(
    ("schedule", "alpha_bar", "rate"), [("cosine", cosine, cosine_rate), ("linear", closed_linear, linear_rate)]
)
def test_ddim_approaches_the_probability_flow_at_first_order_and_adaptive_steps_meet_it(
    schedule, alpha_bar, rate, random_diffusion, written_out_field
):
    decoder = random_diffusion(schedule=schedule)
    exact = probability_flow(written_out_field(decoder.noise, NORMALISED), alpha_bar, rate, 0.9)
    some, twice = (decode(with_integrator(decoder, diffrax.Euler(), num_steps)) for num_steps in (60, 120))
    ratio = np.linalg.norm(some - exact) / np.linalg.norm(twice - exact)
    np.testing.assert_allclose(np.log2(ratio), 1, atol=0.15)
    adaptive = with_integrator(decoder, diffrax.Tsit5(), 10, diffrax.PIDController(rtol=1e-6, atol=1e-6))
    np.testing.assert_allclose(decode(adaptive), exact, rtol=1e-4)


class NoiseOfAGaussian(eqx.Module):
    """The best prediction of the noise where actions are N(observation, 1/4), in place of the network; ᾱ is cosine."""

    def __call__(self, inputs):
        mean, point = inputs[0], inputs[OBSERVATION_SIZE : OBSERVATION_SIZE + ACTION_SIZE]
        embedding = inputs[OBSERVATION_SIZE + ACTION_SIZE :]
        time = jnp.arctan2(embedding[4], embedding[0])
        left = jnp.cos((time + 0.008) / 1.008 * jnp.pi / 2) ** 2
        return jnp.sqrt(1 - left) * (point - jnp.sqrt(left) * mean) / (left * 0.25 + 1 - left)


def decoder_of_a_gaussian(**options):
    return eqx.tree_at(lambda d: d.noise.network, fresh(**options), NoiseOfAGaussian())


def carried_to_a_gaussian(num_levels):
    """The exact map of the probability flow, which keeps the distance to the mean in proportion to the spread."""
    left = cosine((num_levels - 1) / num_levels)
    start = np.float64(LATENT) / np.sqrt(left)
    return 1.5 + (start - 1.5) * 0.5 / np.sqrt(0.25 + (1 - left) / left)


@pytest.mark.parametrize("num_levels", [10, 100])
def test_a_diffusion_carries_latents_to_a_gaussian_as_the_closed_form_does(num_levels):
    options = {"solver": "Dopri5", "rtol": 1e-6, "atol": 1e-6, "num_levels": num_levels}
    decoded = decode(decoder_of_a_gaussian(**options))
    # Below the first level, where the noise is 0.0125, the time stands still, which moves the end by under 1e-3.
    np.testing.assert_allclose(decoded, carried_to_a_gaussian(num_levels), atol=1e-3)


def test_with_many_levels_a_gaussian_is_carried_to_a_gaussian():
    # At the last of 1000 levels next to nothing is left of an action, so that the map is mean + std * latent.
    options = {"solver": "Dopri5", "rtol": 1e-6, "atol": 1e-6, "num_levels": 1000}
    decoded = decode(decoder_of_a_gaussian(**options))
    np.testing.assert_allclose(decoded, 1.5 + 0.5 * np.asarray(LATENT), atol=4e-3)


# --- Loss. ---


def test_the_loss_of_a_diffusion_is_the_squared_error_of_the_noise_at_each_level_equally_often(
    random_diffusion, written_out_field
):
    decoder = random_diffusion(schedule="linear", num_levels=4)
    noise, action, latent = written_out_field(decoder.noise, NORMALISED), np.array([0.3, -0.7]), np.float64(LATENT)
    expected = []
    for time in np.arange(4) / 4:
        left = linear(time)
        predicted = noise(np.sqrt(left) * action + np.sqrt(1 - left) * latent, time)
        expected.append(np.mean((predicted - latent) ** 2))
    keys = jax.random.split(jax.random.key(3), 1000)
    losses = jax.vmap(lambda key: loss_of(decoder, jnp.asarray(action, jnp.float32), key))(keys)
    nearest = np.argmin(np.abs(np.asarray(losses)[:, None] - expected), axis=1)
    np.testing.assert_allclose(losses, np.array(expected)[nearest], rtol=1e-4)
    # Four standard deviations of how often one of four comes up in 1000 draws.
    np.testing.assert_allclose(np.bincount(nearest, minlength=4), 250, atol=55)


def test_a_loss_depends_on_its_key_alone(random_diffusion):
    decoder, action = random_diffusion(), jnp.array([0.3, -0.7])
    first, again, other = (loss_of(decoder, action, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again != other


# --- Settings. ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "Eulr"}, r"'Eulr': did you mean 'Euler'"),
        ({"solver": "Kvaerno3"}, "no explicit diffrax solver is called 'Kvaerno3'"),
        ({"schedule": "cosin"}, r"no noise schedule is called 'cosin': did you mean 'cosine'\?"),
        ({"schedule": "quadratic"}, "no noise schedule is called 'quadratic': there are 'cosine', 'linear'"),
        ({"schedule": (0.9, 0.5, 0.1)}, r"schedule has 3 values for decoder.num_levels = 10"),
        ({"schedule": ()}, r"schedule has 0 values for decoder.num_levels = 10"),
        ({"schedule": (0.9, 0.5, 0.5), "num_levels": 3}, "must fall from level to level"),
        ({"schedule": (0.1, 0.5, 0.9), "num_levels": 3}, "must fall from level to level"),
        ({"schedule": (1.0, 0.5), "num_levels": 2}, "strictly between 1 and 0"),
        ({"schedule": (0.5, 0.0), "num_levels": 2}, "strictly between 1 and 0"),
        ({"schedule": (0.5, -0.1), "num_levels": 2}, "strictly between 1 and 0"),
        ({"schedule": (0.5, float("nan")), "num_levels": 2}, "must fall from level to level"),
        ({"num_steps": 0}, "decoder.num_steps must be an integer at least 1, not 0"),
        ({"num_levels": 0}, "decoder.num_levels must be an integer at least .*, not 0"),
        ({"width": 0}, "decoder.width must be an integer at least 1, not 0"),
        ({"rtol": 1e-3}, "belong together"),
        ({"rtol": 1e-3, "atol": 1e-3}, "Euler does not"),
        ({"solver": "Tsit5", "rtol": 0.0, "atol": 1e-3}, "decoder.rtol must be a number above 0"),
    ],
)
def test_a_diffusion_that_cannot_be_is_answered_in_one_sentence(options, message):
    with pytest.raises(gorl.InputError, match=message) as caught:
        gorl.Config("PointMass", decoder=Diffusion(**options))
    sentence = str(caught.value)
    assert sentence[-1] in ".?"
    assert "\n" not in sentence
    assert ". " not in sentence


def test_a_diffusion_with_a_schedule_of_its_own_goes_through_json_exactly():
    values = (1 - 1e-4 / 3, 0.1 + 0.2, 1 / 7, 1e-6)
    decoder = Diffusion(schedule=values, num_levels=4, solver="Tsit5", rtol=1e-3, atol=1e-6)
    config = gorl.Config("PointMass", decoder=decoder)
    restored = gorl.Config.from_json(config.to_json())
    assert restored == config
    assert restored.decoder.schedule == values
    assert jax.tree.structure(restored) == jax.tree.structure(config)


def test_a_schedule_may_be_a_list():
    assert Diffusion(schedule=[0.9, 0.1], num_levels=2) == Diffusion(schedule=(0.9, 0.1), num_levels=2)
