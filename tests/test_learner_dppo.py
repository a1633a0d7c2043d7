import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from velocity_oracle import ACTION_SIZE, OBSERVATION_SIZE, NumpyVelocity, compiled, moved, used_encoder

from gorl import DPPO, Experience
from gorl._trainable import split_trainable

NUM_STEPS, STEP_STD = 4, 0.2


def small_dppo(**changes):
    sizes = {"policy_width": 16, "policy_depth": 2, "value_width": 16, "value_depth": 1}
    rollout = {"num_envs": 16, "unroll_length": 4, "num_unrolls": 1, "num_minibatches": 2}
    return DPPO(**{"num_steps": NUM_STEPS, "step_std": STEP_STD, **sizes, **rollout, **changes})


class NumpyChain(NumpyVelocity):
    """The chain in float64 and numpy."""

    def next_mean(self, observation, point, index):
        return point + self.velocity(observation, point, index / NUM_STEPS) / NUM_STEPS

    def next_means(self, observation, points):
        points = np.asarray(points, np.float64)
        return np.stack([self.next_mean(observation, points[i], i) for i in range(NUM_STEPS)])

    def log_densities(self, observation, points):
        """Of every step, by scipy."""
        means = self.next_means(observation, points)
        return scipy.stats.norm.logpdf(np.asarray(points, np.float64)[1:], means, STEP_STD).sum(axis=-1)


@pytest.fixture(scope="module")
def steps():
    """An encoder, observations, and an action at each with the chain that ended in it."""
    encoder = used_encoder(small_dppo(), jax.random.key(0))
    observations = 2 + 3 * jax.random.normal(jax.random.key(3), (2000, OBSERVATION_SIZE))
    keys = jax.random.split(jax.random.key(4), 2000)
    return encoder, observations, *compiled(eqx.filter_vmap(lambda o, key: encoder.sample(o, key)))(observations, keys)


def one_of(steps):
    encoder, *batch = steps
    return encoder, *jax.tree.map(lambda leaf: leaf[0], batch)


# --- The chain. ---


def test_a_chain_begins_in_standard_noise_and_ends_in_the_action(steps):
    *_, actions, chain = steps
    assert chain.points.shape == (2000, NUM_STEPS + 1, ACTION_SIZE)
    assert chain.log_density.shape == (2000, NUM_STEPS)
    np.testing.assert_array_equal(chain.points[:, -1], actions)
    start = np.asarray(chain.points[:, 0])
    assert scipy.stats.kstest(start.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.corrcoef(start.T), np.eye(ACTION_SIZE), atol=0.1)


def test_every_step_of_a_chain_adds_noise_of_its_own_to_an_euler_step(steps):
    encoder, observations, _, chain = steps
    oracle = NumpyChain(encoder)
    means = np.stack([oracle.next_means(o, points) for o, points in zip(observations, chain.points, strict=True)])
    noise = (np.asarray(chain.points[:, 1:]) - means) / STEP_STD
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    together = np.concatenate([noise.reshape(2000, -1), np.asarray(chain.points[:, 0])], axis=-1)
    np.testing.assert_allclose(np.corrcoef(together.T), np.eye(together.shape[-1]), atol=0.11)


def test_the_mode_is_the_end_of_the_chain_from_zero_without_noise(steps):
    encoder, observation, *_ = one_of(steps)
    point = np.zeros(ACTION_SIZE)
    for index in range(NUM_STEPS):
        point = NumpyChain(encoder).next_mean(observation, point, index)
    assert np.abs(point).max() > 0.05
    np.testing.assert_allclose(encoder.mode(observation), point, rtol=1e-4, atol=1e-5)


# --- Likelihoods and ratios. ---


def test_the_remembered_log_densities_are_those_of_scipy(steps):
    encoder, observations, _, chain = steps
    oracle = NumpyChain(encoder)
    for i in range(20):
        expected = oracle.log_densities(observations[i], chain.points[i])
        np.testing.assert_allclose(chain.log_density[i], expected, rtol=1e-4, atol=1e-3)


def test_the_ratio_is_one_at_the_parameters_that_collected_the_experience(steps):
    encoder, *batch = steps
    dppo = small_dppo()
    log_ratio = compiled(eqx.filter_vmap(lambda *step: dppo.policy_terms(encoder, *step).log_ratio))(*batch)
    assert log_ratio.shape == (2000, NUM_STEPS)
    np.testing.assert_allclose(log_ratio, 0, atol=3e-5)  # of numbers of order ten


def test_there_is_one_ratio_per_step(steps):
    encoder, observation, action, chain = one_of(steps)
    elsewhere, direction = moved(encoder, 0.3, jax.random.key(7))
    new = NumpyChain(encoder).moved(0.3, direction).log_densities(observation, chain.points)
    expected = new - np.asarray(chain.log_density)
    assert np.abs(expected).max() > 0.03
    found = small_dppo().policy_terms(elsewhere, observation, action, chain)
    np.testing.assert_allclose(found.log_ratio, expected, rtol=1e-3, atol=1e-4)
    assert found.regulariser == 0
    assert set(found.metrics) == set(small_dppo().policy_metric_names())


def test_the_gradient_of_the_ratios_against_finite_differences_in_float64(steps):
    encoder, observation, action, chain = one_of(steps)
    trainable, rest = split_trainable(encoder)
    weights = np.array([0.3, -1.0, 0.8, 0.5])

    @compiled
    @jax.grad
    def gradient(trainable):
        log_ratio = small_dppo().policy_terms(eqx.combine(trainable, rest), observation, action, chain).log_ratio
        return jnp.asarray(weights, jnp.float32) @ log_ratio

    found = jax.tree.leaves(gradient(trainable))
    oracle = NumpyChain(encoder)
    for seed in range(5):
        _, direction = moved(encoder, 0.0, jax.random.key(seed))
        ahead, behind = (
            weights @ oracle.moved(step, direction).log_densities(observation, chain.points) for step in (1e-5, -1e-5)
        )
        along = sum(float(jnp.sum(g * d)) for g, d in zip(found, direction, strict=True))
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-4)


# --- Learning. ---


def test_updates_move_actions_to_where_the_reward_is_and_leave_the_noise_of_a_step_alone():
    dppo = small_dppo(
        num_envs=256, unroll_length=1, num_epochs=4, num_minibatches=4, learning_rate=3e-3, reward_scale=1.0
    )
    target = jnp.array([0.5, -1.0, 0.0])

    def iterate(learner_state, key):
        observation_key, action_key, update_key = jax.random.split(key, 3)
        observation = jax.random.normal(observation_key, (1, 256, OBSERVATION_SIZE))
        sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
        action, chain = sample(observation, jax.random.split(action_key, (1, 256)))
        reward = -jnp.sum((action - target) ** 2, axis=-1)
        experience = Experience(
            observation=observation,
            latent=action,
            extras=chain,
            action=action,
            reward=reward,
            terminated=jnp.ones((1, 256), bool),
            truncated=jnp.zeros((1, 256), bool),
            next_observation=observation,
        )
        learner_state, metrics = dppo.update(learner_state, experience, update_key)
        return learner_state, (jnp.mean(reward), metrics)

    @compiled
    def run(key):
        learner_state = dppo.init(OBSERVATION_SIZE, ACTION_SIZE, key)
        return learner_state, *jax.lax.scan(iterate, learner_state, jax.random.split(key, 60))

    before, after, (rewards, metrics) = run(jax.random.key(0))
    assert set(metrics) == set(dppo.metric_names())
    assert all(jnp.isfinite(figures).all() for figures in metrics.values())
    # Chains without a velocity earn -(3 (1 + 4 * 0.2²) + 1.25); the best there are, -3 * 0.2².
    np.testing.assert_allclose(rewards[0], -4.73, atol=0.6)
    assert jnp.mean(rewards[-5:]) > -1.5, rewards

    np.testing.assert_array_equal(before.encoder.step_std.value, np.float32(STEP_STD))
    np.testing.assert_array_equal(after.encoder.step_std.value, np.float32(STEP_STD))
    learned = zip(*(jax.tree.leaves(m.encoder.velocity) for m in (before, after)), strict=True)
    assert all(not jnp.array_equal(old, new) for old, new in learned)
