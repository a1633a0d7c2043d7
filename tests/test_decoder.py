import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import gorl
from gorl import (
    Diffusion,
    FlowMatching,
    Gaussian,
    Identity,
    IdentityDecoder,
    Integrator,
    MeanFlow,
    RunningStatistics,
)

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
    "meanflow": MeanFlow(width=8, depth=1),
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


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_decoding_leaks_nothing(kind):
    with jax.checking_leaks():
        eqx.filter_eval_shape(lambda decoder: decoder.decode(OBSERVATION, LATENT), fresh(EVERY_KIND[kind]))


def test_the_identity_decoder_returns_the_latent():
    decoder = fresh(Identity())
    assert isinstance(decoder, IdentityDecoder)
    np.testing.assert_array_equal(decode(decoder), LATENT)


# --- MeanFlow. ---

MEAN, STD = 0.7, 0.3


class AverageVelocity(eqx.Module):
    """The closed form for actions from N(0.7, 0.3²), in place of the network; or, at the start of each interval, the
    velocity itself. A multiple of a function of point, time and length is added.

    The point at time `t` is `0.7 t + s(t) x` for the latent `x`, with `s(t)² = (1 - t)² + (0.3 t)²`.
    """

    multiple: jax.Array
    added: str = eqx.field(static=True)
    is_average: bool = eqx.field(static=True, default=True)

    def __call__(self, inputs):
        point = inputs[OBSERVATION_SIZE : OBSERVATION_SIZE + 1]
        cos_time, sin_time, cos_length, sin_length = inputs[OBSERVATION_SIZE + 1 :]
        time, length = jnp.arctan2(sin_time, cos_time), jnp.arctan2(sin_length, cos_length)

        def spread(time):
            return jnp.sqrt((1 - time) ** 2 + (STD * time) ** 2)

        safe = jnp.maximum(length, 1e-3)
        slope = (spread(time + safe) - spread(time)) / safe
        at_once = jax.grad(spread)(time)
        slope = jnp.where(length > 1e-3, slope, at_once) if self.is_average else at_once
        velocity = MEAN + slope * (point - MEAN * time) / spread(time)
        functions = {"one": 1.0, "point": point, "time": time, "length": length, "both": point * length}
        return velocity + self.multiple * functions[self.added]


def known_mean_flow(**options):
    fresh = MeanFlow(width=1, depth=1, num_frequencies=1, weight_power=0.0).init(STATISTICS, 1, jax.random.key(0))
    known = AverageVelocity(jnp.zeros(()), **options)
    return eqx.tree_at(lambda decoder: decoder.velocity.network, fresh, known)


def test_one_pass_along_the_average_velocity_of_a_gaussian_is_the_map_to_it():
    latents = jnp.linspace(-2, 2, 9)[:, None]
    decoded = jax.vmap(lambda latent: known_mean_flow(added="one").decode(OBSERVATION, latent))(latents)
    np.testing.assert_allclose(decoded, MEAN + STD * latents, rtol=1e-5, atol=1e-5)


def gradient_in_standard_errors(decoder, count=100_000):
    """That of the mean loss on actions of the Gaussian, by the multiple."""
    latent_key, action_key, loss_key = jax.random.split(jax.random.key(1), 3)
    latents = jax.random.normal(latent_key, (count, 1))
    actions = MEAN + STD * jax.random.normal(action_key, (count, 1))

    @jax.jit
    @jax.vmap
    def gradient(latent, action, key):
        def loss(multiple):
            there = eqx.tree_at(lambda decoder: decoder.velocity.network.multiple, decoder, multiple)
            return there.loss(OBSERVATION, latent, action, key)

        return jax.grad(loss)(jnp.zeros(()))

    found = np.asarray(gradient(latents, actions, jax.random.split(loss_key, count)), np.float64)
    return found.mean() / (found.std() / np.sqrt(count))


@pytest.mark.parametrize("added", ["one", "point", "time", "length", "both"])
def test_the_average_velocity_of_a_gaussian_is_where_the_gradient_of_the_loss_is_zero(added):
    assert abs(gradient_in_standard_errors(known_mean_flow(added=added))) < 4


def test_the_velocity_itself_is_not():
    assert abs(gradient_in_standard_errors(known_mean_flow(added="both", is_average=False))) > 20


def test_weights_change_gradients_and_not_values():
    action, key = jnp.array([0.4, -1.0]), jax.random.key(3)

    def loss_and_gradient(weight_power):
        decoder = fresh(MeanFlow(width=8, depth=1, weight_power=weight_power))
        value, gradient = eqx.filter_value_and_grad(lambda decoder: decoder.loss(OBSERVATION, LATENT, action, key))(
            decoder
        )
        return value, gradient.velocity.network.layers[0].weight

    (plain, plain_gradient), (weighted, gradient) = loss_and_gradient(0.0), loss_and_gradient(0.5)
    np.testing.assert_allclose(weighted, plain, rtol=1e-6)
    np.testing.assert_allclose(gradient, plain_gradient / np.sqrt(plain + 1e-3), rtol=1e-4, atol=1e-6)


def test_the_validation_loss_is_least_for_the_distribution_of_the_data():
    latent_key, action_key, other_key = jax.random.split(jax.random.key(2), 3)
    latents = jax.random.normal(latent_key, (20_000, 1))
    actions = MEAN + STD * jax.random.normal(action_key, (20_000, 1))

    @eqx.filter_jit
    def score(decoder):
        keys = jax.random.split(other_key, 20_000)
        losses = jax.vmap(lambda *pair: decoder.validation_loss(OBSERVATION, *pair))(latents, actions, keys)
        return jnp.mean(losses)

    best = score(known_mean_flow(added="one"))
    # E|X - Y| is 2 s / sqrt(π) for two draws of N(m, s²), so the score of the true distribution is half of that.
    np.testing.assert_allclose(best, STD / np.sqrt(np.pi), rtol=0.02)
    for added, multiple in (("one", 0.2), ("one", -0.2), ("point", 0.2), ("point", -0.2)):
        moved = eqx.tree_at(lambda d: d.velocity.network.multiple, known_mean_flow(added=added), jnp.array(multiple))
        assert score(moved) > best + 0.01


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


def test_the_loss_of_a_flow_is_the_squared_error_of_the_velocity_on_straight_paths(shaken, written_out_field):
    decoder = fresh(FlowMatching())
    decoder = eqx.tree_at(lambda d: d.velocity, decoder, shaken(decoder.velocity))
    velocity, action = written_out_field(decoder.velocity, NORMALISED), np.array([0.3, -0.7])
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


# --- Gaussian. ---


def test_a_gaussian_decoder_shifts_and_scales_and_its_loss_is_the_negative_log_density(shaken, written_out):
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
