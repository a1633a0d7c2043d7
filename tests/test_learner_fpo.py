import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from velocity_oracle import ACTION_SIZE, OBSERVATION_SIZE, NumpyVelocity, compiled, moved, used_encoder

from gorl import FPO, Experience
from gorl._learner._fpo import FlowDraws
from gorl._trainable import split_trainable


def small_fpo(**changes):
    sizes = {
        "policy_width": 16,
        "policy_depth": 2,
        "value_width": 16,
        "value_depth": 1,
        "num_noise_samples": 5,
        "num_steps": 4,
    }
    return FPO(**{"num_envs": 16, "unroll_length": 4, "num_unrolls": 1, "num_minibatches": 2, **sizes, **changes})


class NumpyFlow(NumpyVelocity):
    """The flow, and its losses, in float64 and numpy."""

    def losses(self, observation, action, noise, time):
        result = []
        for e, t in zip(np.asarray(noise, np.float64), np.asarray(time, np.float64), strict=True):
            point = (1 - t) * e + t * np.asarray(action, np.float64)
            implied_noise = point - t * self.velocity(observation, point, t)
            result.append(sum((implied_noise - e) ** 2) / len(e))
        return np.array(result)

    def flow(self, observation, start, num_steps):
        point = np.asarray(start, np.float64)
        for i in range(num_steps):
            point = point + self.velocity(observation, point, i / num_steps) / num_steps
        return point


@pytest.fixture(scope="module")
def step():
    """An encoder, an observation, and an action that it drew there with what is remembered of it."""
    encoder = used_encoder(small_fpo(), jax.random.key(0))
    observation = jnp.array([1.0, -2.0, 6.0, 3.0])
    action, draws = compiled(encoder.sample)(observation, jax.random.key(1))
    return encoder, observation, action, draws


@pytest.fixture(scope="module")
def draws_at_many_observations():
    """An encoder, observations, and an action at each with what is remembered of it."""
    encoder = used_encoder(small_fpo(), jax.random.key(0))
    observations = 2 + 3 * jax.random.normal(jax.random.key(3), (2000, OBSERVATION_SIZE))
    keys = jax.random.split(jax.random.key(4), 2000)
    return encoder, observations, *compiled(eqx.filter_vmap(lambda o, key: encoder.sample(o, key)))(observations, keys)


def log_ratio(fpo, encoder, step):
    _, observation, action, draws = step
    return fpo.policy_terms(encoder, observation, action, draws).log_ratio


# --- Drawing an action. ---


def test_the_mode_is_where_euler_steps_carry_a_noise_of_zero(step):
    encoder, observation, *_ = step
    expected = NumpyFlow(encoder).flow(observation, np.zeros(ACTION_SIZE), 4)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(encoder.mode(observation), expected, rtol=1e-4, atol=1e-5)


def test_actions_are_where_euler_steps_carry_standard_noise(draws_at_many_observations):
    encoder, observations, actions, _ = draws_at_many_observations
    starts = np.random.default_rng(0).normal(size=(2000, ACTION_SIZE))
    flow = NumpyFlow(encoder)
    expected = np.stack([flow.flow(o, start, 4) for o, start in zip(observations, starts, strict=True)])
    for dimension in range(ACTION_SIZE):
        assert scipy.stats.ks_2samp(actions[:, dimension], expected[:, dimension]).pvalue > 1e-3
    np.testing.assert_allclose(np.cov(actions.T), np.cov(expected.T), atol=0.1 * np.var(expected, axis=0).max())


def test_what_is_remembered_is_standard_noise_and_times_of_the_euler_steps(draws_at_many_observations):
    *_, draws = draws_at_many_observations
    times, counts = np.unique(draws.time, return_counts=True)
    np.testing.assert_allclose(times, [0, 0.25, 0.5, 0.75])
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    noise = np.asarray(draws.noise)
    assert noise.shape == (2000, 5, ACTION_SIZE)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_the_noise_that_is_remembered_is_not_the_one_the_action_came_from():
    # A flow without velocity makes the action its own start.
    encoder = used_encoder(small_fpo(), jax.random.key(0))
    zero = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, encoder.velocity)
    encoder = eqx.tree_at(lambda e: e.velocity, encoder, zero)
    action, draws = encoder.sample(jnp.zeros(OBSERVATION_SIZE), jax.random.key(0))
    assert jnp.min(jnp.linalg.norm(draws.noise - action, axis=-1)) > 1e-3


# --- Losses and ratios. ---


def test_the_losses_are_a_transcription_into_numpy(step):
    encoder, observation, action, draws = step
    time = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = NumpyFlow(encoder).losses(observation, action, draws.noise, time)
    assert expected[0] == 0
    assert expected[1:].min() > 1e-3
    np.testing.assert_allclose(encoder.losses(observation, action, draws.noise, time), expected, rtol=1e-4, atol=1e-6)


def test_the_remembered_losses_are_those_of_the_draws(step):
    encoder, observation, action, draws = step
    expected = NumpyFlow(encoder).losses(observation, action, draws.noise, draws.time)
    np.testing.assert_allclose(draws.loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("average_losses", [False, True])
def test_the_ratio_is_one_at_the_parameters_that_collected_the_experience(draws_at_many_observations, average_losses):
    fpo = small_fpo(average_losses=average_losses)
    policy_terms = compiled(eqx.filter_vmap(lambda *step: fpo.policy_terms(draws_at_many_observations[0], *step)))
    log_ratio = policy_terms(*draws_at_many_observations[1:]).log_ratio
    loss = draws_at_many_observations[-1].loss
    assert log_ratio.shape == (2000, 1 if average_losses else 5)
    assert (jnp.abs(log_ratio) <= 1e-6 * jnp.maximum(1, loss.max(axis=-1, keepdims=True))).all()


def test_there_is_one_ratio_per_draw(step):
    encoder, observation, action, draws = step
    elsewhere, direction = moved(encoder, 0.3, jax.random.key(7))
    other = NumpyFlow(encoder).moved(0.3, direction)
    expected = np.asarray(draws.loss) - other.losses(observation, action, draws.noise, draws.time)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(log_ratio(small_fpo(), elsewhere, step), expected, rtol=1e-3, atol=1e-5)


def test_averaging_the_losses_makes_one_ratio_of_their_mean(step):
    encoder, observation, action, draws = step
    elsewhere, direction = moved(encoder, 0.3, jax.random.key(7))
    other = NumpyFlow(encoder).moved(0.3, direction)
    old, new = np.asarray(draws.loss), other.losses(observation, action, draws.noise, draws.time)
    found = log_ratio(small_fpo(average_losses=True), elsewhere, step)
    assert found.shape == (1,)
    np.testing.assert_allclose(found[0], old.mean() - new.mean(), rtol=1e-3, atol=1e-5)
    # The mean of the ratios is another number.
    assert abs(np.exp(found[0]) - np.exp(old - new).mean()) > 1e-4


def test_differences_of_losses_are_clipped_at_three(step):
    encoder, observation, action, draws = step
    shifts = jnp.array([-10.0, -3.1, 0.5, 2.9, 10.0])
    shifted = FlowDraws(draws.noise, draws.time, draws.loss + shifts)
    found = small_fpo().policy_terms(encoder, observation, action, shifted).log_ratio
    np.testing.assert_allclose(found, [-3, -3, 0.5, 2.9, 3], atol=1e-5)
    # Averaging comes first: the mean of the shifts is 0.06, that of the clipped ones is 0.08.
    averaged = small_fpo(average_losses=True).policy_terms(encoder, observation, action, shifted).log_ratio
    np.testing.assert_allclose(averaged, [0.06], atol=1e-5)


@pytest.mark.parametrize("average_losses", [False, True])
def test_the_gradient_of_the_ratios_against_finite_differences_in_float64(step, average_losses):
    encoder, observation, action, draws = step
    fpo = small_fpo(average_losses=average_losses)
    trainable, rest = split_trainable(encoder)
    weights = np.array([1.0]) if average_losses else np.array([0.3, -1.0, 0.8, 0.5, -0.6])

    @compiled
    @jax.grad
    def gradient(trainable):
        return jnp.asarray(weights, jnp.float32) @ log_ratio(fpo, eqx.combine(trainable, rest), step)

    found = jax.tree.leaves(gradient(trainable))
    flow = NumpyFlow(encoder)

    def oracle(step, direction):
        losses = flow.moved(step, direction).losses(observation, action, draws.noise, draws.time)
        return -weights @ (losses.mean(keepdims=True) if average_losses else losses)

    for seed in range(5):
        _, direction = moved(encoder, 0.0, jax.random.key(seed))
        slope = (oracle(1e-5, direction) - oracle(-1e-5, direction)) / 2e-5
        along = sum(float(jnp.sum(g * d)) for g, d in zip(found, direction, strict=True))
        np.testing.assert_allclose(along, slope, rtol=1e-3, atol=1e-4)


def test_the_loss_is_reported(step):
    encoder, observation, action, draws = step
    fpo = small_fpo()
    metrics = fpo.policy_terms(encoder, observation, action, draws).metrics
    assert set(metrics) == set(fpo.policy_metric_names())
    np.testing.assert_allclose(metrics["flow_loss"], np.mean(draws.loss), rtol=1e-5)


# --- Learning. ---


@pytest.mark.parametrize("changes", [{}, {"asymmetric": True}])
def test_updates_move_actions_to_where_the_reward_is(changes):
    # With a learning rate of 1e-3 and more, FPO without the asymmetry gets there and then falls apart.
    fpo = small_fpo(num_envs=256, unroll_length=1, num_epochs=4, num_minibatches=4, reward_scale=1.0, **changes)
    target = jnp.array([0.5, -1.0, 0.0])

    def iterate(learner_state, key):
        observation_key, action_key, update_key = jax.random.split(key, 3)
        observation = jax.random.normal(observation_key, (1, 256, OBSERVATION_SIZE))
        sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
        action, draws = sample(observation, jax.random.split(action_key, (1, 256)))
        reward = -jnp.sum((action - target) ** 2, axis=-1)
        experience = Experience(
            observation=observation,
            latent=action,
            extras=draws,
            action=action,
            reward=reward,
            terminated=jnp.ones((1, 256), bool),
            truncated=jnp.zeros((1, 256), bool),
            next_observation=observation,
        )
        learner_state, metrics = fpo.update(learner_state, experience, update_key)
        return learner_state, (jnp.mean(reward), metrics)

    @compiled
    def run(key):
        learner_state = fpo.init(OBSERVATION_SIZE, ACTION_SIZE, key)
        return jax.lax.scan(iterate, learner_state, jax.random.split(key, 100))[1]

    rewards, metrics = run(jax.random.key(0))
    assert set(metrics) == set(fpo.metric_names())
    assert all(jnp.isfinite(figures).all() for figures in metrics.values())
    # N(0, I) earns -4.25; a flow that gets there as a whole would earn 0.
    np.testing.assert_allclose(rewards[0], -4.25, atol=0.6)
    assert jnp.mean(rewards[-5:]) > -0.5, rewards


def test_drawing_leaks_nothing():
    encoder = FPO(policy_width=8, policy_depth=1).fresh_encoder(3, 2, jax.random.key(0))
    with jax.checking_leaks():
        eqx.filter_eval_shape(lambda encoder: encoder.sample(jnp.zeros(3), jax.random.key(0)), encoder)
