import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import expit
from scipy.stats import norm

import gorl
from gorl import Diffusion, FlowMatching, Gaussian, Identity, IdentityDecoder, Integrator, RunningStatistics

OBSERVATION_SIZE, ACTION_SIZE = 3, 2
LATENT = jnp.array([1.0, -2.0])
OBSERVATION = jnp.array([6.0, 0.0, 0.0])
NORMALISED = np.array([1.5, -1.5, -1.5])
STATISTICS = RunningStatistics(jnp.array(100.0), jnp.full(OBSERVATION_SIZE, 3.0), jnp.full(OBSERVATION_SIZE, 4.0))
SMALL = {"width": 8, "depth": 1, "num_steps": 3}
EVERY_KIND = {
    "flow": FlowMatching(**SMALL),
    "adaptive flow": FlowMatching(**SMALL, solver="Tsit5", rtol=1e-3, atol=1e-3),
    "diffusion": Diffusion(**SMALL),
    "adaptive diffusion": Diffusion(**SMALL, solver="Tsit5", rtol=1e-3, atol=1e-3),
    "gaussian": Gaussian(width=8, depth=1),
    "identity": Identity(),
}
every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())


@eqx.filter_jit
def decode(decoder, observation=OBSERVATION, latent=LATENT):
    return decoder.decode(observation, latent)


@eqx.filter_jit
def loss_of(decoder, action, key, latent=LATENT):
    return decoder.loss(OBSERVATION, latent, action, key)


def fresh(config, key=jax.random.key(0)):
    return config.init(STATISTICS, ACTION_SIZE, key)


def with_integrator(decoder, *arguments):
    return dataclasses.replace(decoder, integrator=Integrator(*arguments))


def shaken(module):
    """`module` with a little noise on every number, so that biases are not zero either."""
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(draw(0, 0.1, leaf.shape), jnp.float32), module)


def written_out(network):
    """A perceptron with SiLU activations, in numpy and double precision."""
    layers = [(np.float64(layer.weight), np.float64(layer.bias)) for layer in network.layers]

    def run(inputs):
        for weight, bias in layers[:-1]:
            inputs = weight @ inputs + bias
            inputs = inputs * expit(inputs)
        weight, bias = layers[-1]
        return weight @ inputs + bias

    return run


def written_out_field(network):
    """The field of a decoder's network at `OBSERVATION`, in numpy and double precision."""
    run = written_out(network)

    def field(point, time):
        angles = time * np.array([1.0, 2.0, 4.0, 8.0])
        return run(np.concatenate([NORMALISED, point, np.cos(angles), np.sin(angles)]))

    return field


# --- All kinds. ---


@every_kind
def test_every_leaf_is_an_array(config):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fresh(config)))


@every_kind
def test_decoders_go_through_jit_and_vmap_and_can_be_batched_themselves(config):
    keys = jax.random.split(jax.random.key(0), 3)
    observations = jax.random.normal(jax.random.key(1), (3, OBSERVATION_SIZE))
    latents = jax.random.normal(jax.random.key(2), (3, ACTION_SIZE))

    @jax.jit
    def batched(decoders, observations, latents):
        return jax.vmap(lambda decoder, *pair: decoder.decode(*pair))(decoders, observations, latents)

    decoded = batched(jax.jit(jax.vmap(lambda key: fresh(config, key)))(keys), observations, latents)
    one_by_one = [decode(fresh(config, keys[i]), observations[i], latents[i]) for i in range(3)]
    np.testing.assert_allclose(decoded, jnp.stack(one_by_one), rtol=1e-4, atol=1e-4)


def test_the_identity_decoder_returns_the_latent():
    decoder = fresh(Identity())
    assert isinstance(decoder, IdentityDecoder)
    np.testing.assert_array_equal(decode(decoder), LATENT)


# --- Flow matching. ---


class KnownField(eqx.Module):
    """The velocity `-rate * cos(t) * x`, whose rate is the first normalised observation, in place of the network.

    It carries `x` at time 0 to `x * exp(-rate * sin 1)` at time 1.
    """

    def __call__(self, inputs):
        rate, point = inputs[0], inputs[OBSERVATION_SIZE : OBSERVATION_SIZE + ACTION_SIZE]
        cosine = inputs[OBSERVATION_SIZE + ACTION_SIZE]
        return -rate * cosine * point


EXACT = np.asarray(LATENT) * np.exp(-1.5 * np.sin(1.0))


def known_decoder(**options):
    return eqx.tree_at(lambda decoder: decoder.velocity.network, fresh(FlowMatching(**options)), KnownField())


def sampling_error(solver, num_steps):
    return np.linalg.norm(decode(known_decoder(solver=solver, num_steps=num_steps)) - EXACT)


@pytest.mark.parametrize(("solver", "order", "num_steps"), [("Euler", 1, 40), ("Heun", 2, 10), ("Bosh3", 3, 8)])
def test_equal_steps_converge_at_the_order_of_the_solver(solver, order, num_steps):
    observed = np.log2(sampling_error(solver, num_steps) / sampling_error(solver, 2 * num_steps))
    np.testing.assert_allclose(observed, order, atol=0.15)


def test_adaptive_steps_meet_their_tolerance():
    decoder = known_decoder(solver="Tsit5", rtol=1e-5, atol=1e-5, num_steps=100)
    np.testing.assert_allclose(decode(decoder), EXACT, atol=1e-4)


def test_any_solver_and_controller_can_be_given_by_hand():
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    decoder = with_integrator(known_decoder(), diffrax.Dopri5(), 10, controller, 100)
    np.testing.assert_allclose(decode(decoder), EXACT, atol=1e-4)


@pytest.mark.parametrize("solver", ["Euler", "Ralston", "Tsit5", "Dopri5"])
def test_a_fresh_decoder_is_close_to_the_identity_whatever_the_solver(solver):
    np.testing.assert_allclose(decode(fresh(FlowMatching(width=8, num_steps=3, solver=solver))), LATENT, atol=0.02)


def test_the_loss_of_a_flow_is_the_squared_error_of_the_velocity_on_straight_paths():
    decoder = fresh(FlowMatching())
    decoder = eqx.tree_at(lambda d: d.velocity, decoder, shaken(decoder.velocity))
    velocity, action = written_out_field(decoder.velocity.network), np.array([0.3, -0.7])
    for key in jax.random.split(jax.random.key(3), 4):
        time = float(jax.random.uniform(key))
        point = (1 - time) * np.float64(LATENT) + time * action
        expected = np.mean((velocity(point, time) - (action - np.float64(LATENT))) ** 2)
        loss = loss_of(decoder, jnp.asarray(action, jnp.float32), key)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_an_adaptive_solve_does_not_stop_half_way():
    # Two steps are too few for these tolerances; num_steps is about equal steps only.
    decoder = known_decoder(solver="Tsit5", rtol=1e-5, atol=1e-5, num_steps=2)
    np.testing.assert_allclose(decode(decoder), EXACT, atol=1e-4)


def test_a_controller_that_does_not_arrive_gives_nan_rather_than_an_unfinished_action():
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    decoder = with_integrator(known_decoder(), diffrax.Tsit5(), 10, controller, 3)
    assert np.isnan(decode(decoder)).all()


# --- Diffusion. ---

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


def shaken_diffusion(**options):
    decoder = fresh(Diffusion(width=16, depth=2, **options))
    return eqx.tree_at(lambda d: d.noise, decoder, shaken(decoder.noise))


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
def test_euler_steps_of_a_diffusion_are_ddim(schedule, alpha_bar, num_levels, num_steps):
    decoder = shaken_diffusion(schedule=schedule, num_levels=num_levels, solver="Euler", num_steps=num_steps)
    expected = ddim(written_out_field(decoder.noise.network), alpha_bar, num_levels, num_steps)
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
def test_ddim_approaches_the_probability_flow_at_first_order_and_adaptive_steps_meet_it(schedule, alpha_bar, rate):
    decoder = shaken_diffusion(schedule=schedule)
    exact = probability_flow(written_out_field(decoder.noise.network), alpha_bar, rate, 0.9)
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
    return eqx.tree_at(lambda d: d.noise.network, fresh(Diffusion(**options)), NoiseOfAGaussian())


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


def test_the_loss_of_a_diffusion_is_the_squared_error_of_the_noise_at_each_level_equally_often():
    decoder = shaken_diffusion(schedule="linear", num_levels=4)
    noise, action, latent = written_out_field(decoder.noise.network), np.array([0.3, -0.7]), np.float64(LATENT)
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


def test_a_loss_depends_on_its_key_alone():
    decoder, action = shaken_diffusion(), jnp.array([0.3, -0.7])
    first, again, other = (loss_of(decoder, action, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again != other


# --- Gaussian. ---


def test_a_gaussian_decoder_shifts_and_scales_and_its_loss_is_the_negative_log_density():
    decoder = fresh(Gaussian(width=16, depth=2))
    decoder = eqx.tree_at(lambda d: d.network, decoder, shaken(decoder.network))
    outputs = written_out(decoder.network)(NORMALISED)
    mean, std = outputs[:2], np.logaddexp(0, outputs[2:]) + 1e-3
    np.testing.assert_allclose(decode(decoder), mean + std * np.asarray(LATENT), rtol=1e-4)
    action = np.array([0.3, -0.7])
    expected = -np.mean(norm.logpdf(action, mean, std))
    for latent, seed in ((LATENT, 0), (-LATENT, 1)):
        loss = loss_of(decoder, jnp.asarray(action, jnp.float32), jax.random.key(seed), latent)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


# --- Bad input. ---


def test_a_misspelt_solver_is_answered_with_the_nearest():
    with pytest.raises(gorl.InputError, match=r"'Eulr'.*did you mean 'Euler'"):
        FlowMatching(solver="Eulr").check()


@pytest.mark.parametrize("options", [{"rtol": 1e-3}, {"atol": 1e-3}])
def test_one_tolerance_without_the_other_is_refused(options):
    with pytest.raises(gorl.InputError, match="belong together"):
        FlowMatching(solver="Tsit5", **options).check()


def test_tolerances_for_a_solver_without_an_error_estimate_are_refused():
    with pytest.raises(gorl.InputError, match="Euler does not"):
        FlowMatching(solver="Euler", rtol=1e-3, atol=1e-3).check()


def test_a_solver_with_options_of_its_own_is_refused():
    with pytest.raises(gorl.InputError, match=r"give Tsit5\(\)"):
        FlowMatching(solver=diffrax.Tsit5(scan_kind="bounded"))


def test_a_solver_is_remembered_by_name():
    assert FlowMatching(solver=diffrax.Heun()) == FlowMatching(solver="Heun")
    assert FlowMatching(solver=diffrax.Heun()).solver == "Heun"


def test_an_implicit_solver_is_refused():
    with pytest.raises(gorl.InputError, match="no explicit diffrax solver is called 'Kvaerno3'"):
        FlowMatching(solver=diffrax.Kvaerno3()).check()


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
        gorl.Config(decoder=Diffusion(**options))
    sentence = str(caught.value)
    assert sentence[-1] in ".?"
    assert "\n" not in sentence
    assert ". " not in sentence


def test_a_diffusion_with_a_schedule_of_its_own_goes_through_json_exactly():
    values = (1 - 1e-4 / 3, 0.1 + 0.2, 1 / 7, 1e-6)
    decoder = Diffusion(schedule=values, num_levels=4, solver="Tsit5", rtol=1e-3, atol=1e-6)
    config = gorl.Config(decoder=decoder)
    restored = gorl.Config.from_json(config.to_json())
    assert restored == config
    assert restored.decoder.schedule == values
    assert jax.tree.structure(restored) == jax.tree.structure(config)


def test_a_schedule_may_be_a_list():
    assert Diffusion(schedule=[0.9, 0.1], num_levels=2) == Diffusion(schedule=(0.9, 0.1), num_levels=2)
