import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl import FlowMatching, Identity, IdentityDecoder, RunningStatistics

OBSERVATION_SIZE, ACTION_SIZE = 3, 2


class KnownField(eqx.Module):
    """The velocity `-rate * cos(t) * x`, whose rate is the first normalised observation, in place of the network.

    It carries `x` at time 0 to `x * exp(-rate * sin 1)` at time 1.
    """

    def __call__(self, inputs):
        rate, point = inputs[0], inputs[OBSERVATION_SIZE : OBSERVATION_SIZE + ACTION_SIZE]
        cosine = inputs[OBSERVATION_SIZE + ACTION_SIZE]
        return -rate * cosine * point


LATENT = jnp.array([1.0, -2.0])
OBSERVATION = jnp.array([6.0, 0.0, 0.0])  # the first one is 1.5 when normalised
EXACT = np.asarray(LATENT) * np.exp(-1.5 * np.sin(1.0))


def fresh_decoder(**options):
    statistics = RunningStatistics(jnp.array(100.0), jnp.full(OBSERVATION_SIZE, 3.0), jnp.full(OBSERVATION_SIZE, 4.0))
    return FlowMatching(**options).init(statistics, ACTION_SIZE, jax.random.key(0))


def known_decoder(**options):
    return eqx.tree_at(lambda decoder: decoder.network, fresh_decoder(**options), KnownField())


def sampling_error(solver, num_steps):
    decode = eqx.filter_jit(known_decoder(solver=solver, num_steps=num_steps).decode)
    return np.linalg.norm(decode(OBSERVATION, LATENT) - EXACT)


@pytest.mark.parametrize(
    ("solver", "order", "num_steps"), [("Euler", 1, 40), ("Heun", 2, 10), ("Midpoint", 2, 10), ("Bosh3", 3, 8)]
)
def test_equal_steps_converge_at_the_order_of_the_solver(solver, order, num_steps):
    observed = np.log2(sampling_error(solver, num_steps) / sampling_error(solver, 2 * num_steps))
    np.testing.assert_allclose(observed, order, atol=0.15)


def test_adaptive_steps_meet_their_tolerance():
    decoder = known_decoder(solver="Tsit5", rtol=1e-5, atol=1e-5, num_steps=100)
    np.testing.assert_allclose(decoder.decode(OBSERVATION, LATENT), EXACT, atol=1e-4)


def test_any_solver_and_controller_can_be_given_by_hand():
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    decoded = known_decoder().integrate(OBSERVATION, LATENT, diffrax.Dopri5(), controller, num_steps=100)
    np.testing.assert_allclose(decoded, EXACT, atol=1e-4)


@pytest.mark.parametrize("solver", ["Euler", "Heun", "Midpoint", "Ralston", "Bosh3", "Tsit5", "Dopri5"])
def test_a_fresh_decoder_is_close_to_the_identity_whatever_the_solver(solver):
    np.testing.assert_allclose(fresh_decoder(solver=solver).decode(OBSERVATION, LATENT), LATENT, atol=0.02)


@pytest.mark.parametrize("options", [{}, {"solver": "Tsit5", "rtol": 1e-3, "atol": 1e-3}])
def test_every_leaf_is_an_array(options):
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fresh_decoder(**options)))


@pytest.mark.parametrize("options", [{}, {"solver": "Tsit5", "rtol": 1e-3, "atol": 1e-3}])
def test_decoders_go_through_jit_and_vmap(options):
    decoder = fresh_decoder(**options)
    observations = jax.random.normal(jax.random.key(1), (4, OBSERVATION_SIZE))
    latents = jax.random.normal(jax.random.key(2), (4, ACTION_SIZE))
    decode = jax.jit(lambda decoder, *pairs: jax.vmap(decoder.decode)(*pairs))
    one_by_one = [decoder.decode(*pair) for pair in zip(observations, latents, strict=True)]
    np.testing.assert_allclose(decode(decoder, observations, latents), jnp.stack(one_by_one), atol=1e-5)


def test_decoders_can_be_batched():
    statistics = RunningStatistics.empty(OBSERVATION_SIZE)

    @jax.jit
    def decode_with_fresh(key):
        return FlowMatching(width=8, depth=1).init(statistics, ACTION_SIZE, key).decode(OBSERVATION, LATENT)

    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_allclose(jax.vmap(decode_with_fresh)(keys)[1], decode_with_fresh(keys[1]), atol=1e-5)


def test_loss_is_the_squared_error_of_the_velocity_on_straight_paths():
    decoder = fresh_decoder(num_draws=8)
    action, key = jnp.array([0.3, -0.7]), jax.random.key(3)
    noise_key, time_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(noise_key, (8, ACTION_SIZE)))
    times = np.asarray(jax.random.uniform(time_key, (8,)))
    normalised = (np.asarray(OBSERVATION) - 3.0) / 2.0
    errors = []
    for start, time in zip(noise, times, strict=True):
        angles = time * np.array([1.0, 2.0, 4.0, 8.0])
        point = (1 - time) * start + time * np.asarray(action)
        inputs = np.concatenate([normalised, point, np.cos(angles), np.sin(angles)])
        velocity = decoder.network(jnp.asarray(inputs, jnp.float32))
        errors.append((velocity - (action - start)) ** 2)
    np.testing.assert_allclose(decoder.loss(OBSERVATION, action, key), np.mean(errors), rtol=1e-4)


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


def test_the_identity_decoder_returns_the_latent():
    decoder = Identity().init(RunningStatistics.empty(OBSERVATION_SIZE), ACTION_SIZE, jax.random.key(0))
    assert isinstance(decoder, IdentityDecoder)
    np.testing.assert_array_equal(decoder.decode(OBSERVATION, LATENT), LATENT)


def test_an_adaptive_solve_does_not_stop_half_way():
    # Two steps are too few for these tolerances; num_steps is about equal steps only.
    decoder = known_decoder(solver="Tsit5", rtol=1e-5, atol=1e-5, num_steps=2)
    np.testing.assert_allclose(decoder.decode(OBSERVATION, LATENT), EXACT, atol=1e-4)


def test_a_controller_that_does_not_arrive_gives_nan_rather_than_an_unfinished_action():
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    decoded = known_decoder().integrate(OBSERVATION, LATENT, diffrax.Tsit5(), controller, num_steps=3)
    assert np.isnan(decoded).all()
