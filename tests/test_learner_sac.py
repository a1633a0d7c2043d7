import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

import gorl
from gorl import SAC, Experience
from gorl._config import as_arrays

OBSERVATION_SIZE, LATENT_SIZE = 2, 2

# Most programs here take seconds to compile and milliseconds to run.
compiled = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})


def small_sac(**changes):
    sizes = {"policy_width": 8, "policy_depth": 1, "value_width": 8, "value_depth": 1, "buffer_size": 24}
    rollout = {"num_envs": 4, "unroll_length": 4, "num_unrolls": 1, "updates_per_step": 2, "batch_size": 8}
    sac = SAC(**{**sizes, **rollout, "learning_starts": 0, **changes})
    return jax.tree.map(jnp.asarray, sac)  # so that compiled code is shared between values


@compiled
def used_memory(key, **changes):
    """A memory with random weights, target critics that differ from the critics, and statistics."""
    init_key, noise_key, data_key = jax.random.split(key, 3)
    learner_state = small_sac(**changes).init(OBSERVATION_SIZE, LATENT_SIZE, init_key)
    networks = (learner_state.encoder.network, learner_state.critics, learner_state.target_critics)
    leaves, structure = jax.tree.flatten(networks)
    keys = jax.random.split(noise_key, len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(leaf_key, leaf.shape) for leaf, leaf_key in zip(leaves, keys, strict=True)]
    statistics = learner_state.encoder.statistics.update(2 + 3 * jax.random.normal(data_key, (100, OBSERVATION_SIZE)))
    return eqx.tree_at(
        lambda m: (m.encoder.network, m.critics, m.target_critics, m.encoder.statistics),
        learner_state,
        (*jax.tree.unflatten(structure, noisy), statistics),
    )


@compiled
def random_experience(key, first_id):
    """Steps whose rewards number them; what they led to is told apart from all other observations by a shift of 50."""
    steps = (4, 4)
    keys = jax.random.split(key, 4)
    observation = 2 + 3 * jax.random.normal(keys[0], (*steps, OBSERVATION_SIZE))
    latent = jax.random.normal(keys[1], (*steps, LATENT_SIZE))
    ends = jax.random.randint(keys[2], steps, 0, 3)
    return Experience(
        observation=observation,
        latent=latent,
        extras=jnp.zeros(steps),
        action=latent,
        reward=first_id + jnp.arange(observation[..., 0].size, dtype=jnp.float32).reshape(steps),
        terminated=ends == 1,
        truncated=ends == 2,
        next_observation=50 + jax.random.normal(keys[3], (*steps, OBSERVATION_SIZE)),
    )


update = compiled(SAC.update)
gradient_step = compiled(SAC._gradient_step)


@compiled
def sample(sac, buffer, keys):
    return jax.vmap(lambda key: sac._buffer().sample(buffer, key).experience)(keys)


def in_buffer(learner_state):
    """What the replay buffer holds, as seen through many draws from it: transitions by their number."""
    drawn = sample(small_sac(), learner_state.buffer, jax.random.split(jax.random.key(0), 100))
    drawn = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), drawn)
    _, first = np.unique(drawn.reward, return_index=True)
    return jax.tree.map(lambda leaf: leaf[first], drawn)


def some_experience(seed, first_id=0):
    return random_experience(jax.random.key(seed), jnp.asarray(float(first_id)))


def remember(learner_state, experience, **changes):
    """The memory with a full iteration in its buffer, and nothing learned from it."""
    return update(small_sac(learning_starts=1_000_000, **changes), learner_state, experience, jax.random.key(0))[0]


# --- The optimum of a problem that can be solved by hand. ---
#
# One step, and the reward -½ Σ kᵢ (latentᵢ - cᵢ)². Under a temperature α and the prior N(0, I) the best encoder is
# proportional to the prior times exp(reward/α): a Gaussian of precision 1 + kᵢ/α and mean (kᵢ cᵢ/α)/(1 + kᵢ/α).

CURVATURE = np.array([1.0, 4.0])


def centre(observation):
    return jnp.array([1.0, -0.5]) + jnp.array([0.0, 0.3]) * observation


def reward_of(observation, latent):
    return -0.5 * jnp.sum(CURVATURE * (latent - centre(observation)) ** 2)


def best(observations, temperature):
    precision = 1 + CURVATURE / temperature
    return CURVATURE * np.asarray(jax.vmap(centre)(observations)) / temperature / precision, 1 / precision


def one_step_sac(**changes):
    sizes = {"policy_width": 64, "policy_depth": 1, "value_width": 64, "value_depth": 2, "buffer_size": 8192}
    rollout = {"num_envs": 64, "unroll_length": 1, "num_unrolls": 1, "updates_per_step": 8, "batch_size": 128}
    return SAC(**sizes, **rollout, learning_starts=512, **changes)


@eqx.filter_jit
def practise(sac, learner_state, num_iterations, key):
    """Lets SAC learn from steps that its own encoder takes."""

    def iterate(learner_state, key):
        observation_key, latent_key, update_key = jax.random.split(key, 3)
        observation = jax.random.normal(observation_key, (1, sac.num_envs, OBSERVATION_SIZE))
        sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
        latent, extras = sample(observation, jax.random.split(latent_key, (1, sac.num_envs)))
        ended = jnp.ones((1, sac.num_envs), bool)
        experience = Experience(
            observation=observation,
            latent=latent,
            extras=extras,
            action=latent,
            reward=jax.vmap(jax.vmap(reward_of))(observation, latent),
            terminated=ended,
            truncated=~ended,
            next_observation=jnp.full_like(observation, 1e6),  # after the end: must not matter
        )
        return sac.update(learner_state, experience, update_key)

    return jax.lax.scan(iterate, learner_state, jax.random.split(key, num_iterations))


def learn(sac, num_iterations=200):
    learner_state = eqx.filter_jit(sac.init)(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    # Fast at first, then slowly, so that the last noise averages out; the values share their compiled code.
    for learning_rate, seed in ((3e-3, 1), (3e-4, 2)):
        sac = gorl.replace(sac, {"learning_rate": jnp.asarray(learning_rate)})
        learner_state, metrics = practise(sac, learner_state, num_iterations, jax.random.key(seed))
    observations = jax.random.normal(jax.random.key(3), (500, OBSERVATION_SIZE))
    mean, std = jax.vmap(learner_state.encoder.distribution)(observations)
    return learner_state, metrics, observations, mean, std


def test_the_encoder_becomes_the_prior_times_the_exponential_of_the_reward():
    _, metrics, observations, mean, std = learn(one_step_sac(learn_temperature=False, initial_temperature=0.5))
    expected_mean, expected_variance = best(observations, 0.5)
    error = np.sqrt(np.mean((mean - expected_mean) ** 2, axis=0))
    assert (error < 0.05 * np.sqrt(np.mean(expected_mean**2, axis=0))).all(), error
    np.testing.assert_allclose(np.mean(std**2, axis=0), expected_variance, rtol=0.05)
    assert (metrics["temperature"] == 0.5).all()


def gaussian_divergence(mean, variance):
    """From N(0, I), summed over dimensions."""
    return np.sum(mean**2 + variance - 1 - np.log(variance), axis=-1) / 2


def test_the_divergence_settles_at_its_target_and_the_temperature_at_what_that_takes():
    target = 0.4
    learner_state, metrics, observations, mean, std = learn(one_step_sac(target_divergence=target))
    divergence = gaussian_divergence(np.asarray(mean), np.asarray(std) ** 2).mean()
    np.testing.assert_allclose(divergence, target * LATENT_SIZE, rtol=0.1)
    np.testing.assert_allclose(np.mean(metrics["divergence"][-50:]), target * LATENT_SIZE, rtol=0.1)

    def excess(temperature):
        return gaussian_divergence(*best(observations, temperature)).mean() - target * LATENT_SIZE

    temperature = scipy.optimize.brentq(excess, 0.01, 100)
    np.testing.assert_allclose(np.exp(learner_state.log_temperature), temperature, rtol=0.1)


# --- The divergence. ---


@pytest.mark.parametrize("on_actions", [False, True])
def test_the_average_divergence_of_draws_from_the_prior(on_actions):
    sac = small_sac(on_actions=on_actions)
    encoder = used_memory(jax.random.key(0)).encoder
    observation = jnp.array([1.0, 4.0])
    num_noise_samples = 100_000
    observations = jnp.broadcast_to(observation, (num_noise_samples, OBSERVATION_SIZE))
    noise = jax.random.normal(jax.random.key(1), (num_noise_samples, LATENT_SIZE))
    latent, divergence = compiled(lambda noise: sac._draw(encoder, observations, noise))(noise)
    mean, std = (np.asarray(part, np.float64) for part in encoder.distribution(observation))
    for dimension in range(LATENT_SIZE):
        law = scipy.stats.norm(mean[dimension], std[dimension])
        assert scipy.stats.kstest(latent[:, dimension], law.cdf).pvalue > 1e-3

    def entropy_of_action(mean, std):
        law, ends = scipy.stats.norm(mean, std), (mean - 12 * std, mean + 12 * std)
        slope = scipy.integrate.quad(lambda x: law.pdf(x) * -2 * np.log(np.cosh(x)), *ends, limit=500)[0]
        return law.entropy() + slope

    if on_actions:
        # From the uniform distribution of actions: its entropy less that of tanh of the Gaussian.
        expected = LATENT_SIZE * np.log(2) - sum(map(entropy_of_action, mean, std))
    else:
        expected = gaussian_divergence(mean, std**2)
    assert expected > 0.05
    standard_error = np.std(divergence) / np.sqrt(num_noise_samples)
    np.testing.assert_allclose(np.mean(divergence), expected, atol=4 * standard_error)


@pytest.mark.parametrize(("scale", "entropy"), [("paper", -1.0), ("laptop", -0.5)])
def test_the_presets_of_sac_on_actions_aim_at_a_usual_entropy_per_dimension(scale, entropy):
    divergence = gorl.preset("MultiGoal", scale, "sac").learner.target_divergence
    np.testing.assert_allclose(divergence, np.log(2) - entropy, atol=5e-3)


# --- One gradient step. ---


def numpy_values(critics, inputs):
    """The values of both critics in float64."""
    values = []
    for index in range(2):
        x = np.asarray(inputs, np.float64)
        for layer in critics.layers[:-1]:
            x = x @ np.asarray(layer.weight[index], np.float64).T + np.asarray(layer.bias[index], np.float64)
            x = x / (1 + np.exp(-x))
        last = critics.layers[-1]
        values.append(x @ np.asarray(last.weight[index], np.float64)[0] + float(last.bias[index, 0]))
    return np.stack(values)


@pytest.mark.parametrize("on_actions", [False, True])
def test_truncated_steps_bootstrap_and_terminated_ones_do_not(on_actions):
    changes = {"on_actions": on_actions, "reward_scale": 2.0, "discount": 0.9}
    sac, experience = small_sac(**changes), some_experience(2)
    assert experience.terminated.any()
    assert experience.truncated.any()
    assert (~experience.terminated & ~experience.truncated).any()
    learner_state = remember(used_memory(jax.random.key(0)), experience, **changes)
    learner_state = eqx.tree_at(lambda m: m.log_temperature, learner_state, jnp.log(0.3))
    batch, key = in_buffer(learner_state), jax.random.key(3)
    _, metrics = gradient_step(sac, learner_state, jax.tree.map(jnp.asarray, batch), key)

    def flat(leaf):
        return np.asarray(leaf).reshape(16, *leaf.shape[2:])

    def inputs(observation, latent):
        statistics = learner_state.encoder.statistics
        normalised = (observation - statistics.mean) / np.sqrt(statistics.variance)
        return np.concatenate([normalised, np.tanh(latent) if on_actions else latent], axis=-1)

    # Only the random numbers behind the next latents are taken from the code.
    noise = np.asarray(jax.random.normal(jax.random.split(key)[0], (16, LATENT_SIZE)), np.float64)
    after = flat(experience.next_observation)
    mean, std = (np.asarray(part, np.float64) for part in jax.vmap(learner_state.encoder.distribution)(after))
    next_latent = mean + std * noise
    prior = -2 * np.log(np.cosh(next_latent)) - np.log(2) if on_actions else scipy.stats.norm.logpdf(next_latent)
    divergence = np.sum(scipy.stats.norm.logpdf(next_latent, mean, std) - prior, axis=-1)
    next_values = numpy_values(learner_state.target_critics, inputs(after, next_latent)).min(axis=0)
    bootstrapped = np.where(flat(experience.terminated), 0, 0.9 * (next_values - 0.3 * divergence))
    targets = 2.0 * flat(experience.reward) + bootstrapped
    values = numpy_values(learner_state.critics, inputs(flat(experience.observation), flat(experience.latent)))
    expected = np.mean(np.sum((values - targets) ** 2, axis=0))
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)


@pytest.mark.parametrize(("truncated", "expected"), [(True, 2.0), (False, 1.0)])
def test_the_value_of_a_state_that_pays_one_for_ever_or_once(truncated, expected):
    # With a discount of a half, 1 + ½ + ¼ + .. where the time limit ends every episode at once, 1 where the task does.
    # As every latent pays the same, the best encoder is the prior, and its divergence costs nothing.
    sac = small_sac(discount=0.5, tau=0.1, learning_rate=3e-3, learn_temperature=False)
    learner_state = used_memory(jax.random.key(1))
    metrics = {}
    for seed in range(300):
        experience = some_experience(seed)
        ended = jnp.ones_like(experience.terminated)
        experience = eqx.tree_at(
            lambda e: (e.reward, e.terminated, e.truncated, e.next_observation),
            experience,
            (jnp.ones_like(experience.reward), ended & (not truncated), ended & truncated, experience.observation),
        )
        learner_state, metrics = update(sac, learner_state, experience, jax.random.key(seed))
    np.testing.assert_allclose(metrics["value"], expected, atol=0.1)
    assert metrics["divergence"] < 0.1


@pytest.mark.parametrize("on_actions", [False, True])
def test_the_encoder_climbs_the_lower_of_the_two_critics_as_they_are_after_their_own_step(on_actions):
    sac = small_sac(on_actions=on_actions)
    before = remember(used_memory(jax.random.key(0)), some_experience(1))
    # So that each critic is the lower one somewhere.
    before = eqx.tree_at(
        lambda m: m.critics.layers[-1].bias, before, replace_fn=lambda b: b - jnp.array([[0.0], [1.2]])
    )
    batch, key = in_buffer(before), jax.random.key(3)
    after, metrics = gradient_step(sac, before, jax.tree.map(jnp.asarray, batch), key)

    # Only the random numbers behind the latents are taken from the code.
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], (16, LATENT_SIZE)), np.float64)
    mean, std = (np.asarray(part, np.float64) for part in jax.vmap(before.encoder.distribution)(batch.observation))
    latent = mean + std * noise
    prior = -2 * np.log(np.cosh(latent)) - np.log(2) if on_actions else scipy.stats.norm.logpdf(latent)
    divergence = np.sum(scipy.stats.norm.logpdf(latent, mean, std) - prior, axis=-1)
    statistics = before.encoder.statistics
    normalised = (batch.observation - statistics.mean) / np.sqrt(statistics.variance)
    inputs = np.concatenate([normalised, np.tanh(latent) if on_actions else latent], axis=-1)
    one, other = numpy_values(after.critics, inputs)
    assert (one < other).any()
    assert (one > other).any()
    np.testing.assert_allclose(metrics["divergence"], divergence.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["value"], np.minimum(one, other).mean(), rtol=1e-4, atol=1e-5)
    expected = (divergence - np.minimum(one, other)).mean()  # at the temperature 1
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-4, atol=1e-5)


def test_target_critics_move_towards_the_critics_by_the_smoothing_factor():
    before = remember(used_memory(jax.random.key(0)), some_experience(1))
    batch = jax.tree.map(jnp.asarray, in_buffer(before))
    after, _ = gradient_step(small_sac(tau=0.25), before, batch, jax.random.key(2))
    assert not eqx.tree_equal(after.critics, before.critics)
    leaves = (jax.tree.leaves(c) for c in (before.target_critics, after.critics, after.target_critics))
    for old, critic, new in zip(*leaves, strict=True):
        np.testing.assert_allclose(new, 0.75 * old + 0.25 * critic, rtol=1e-5, atol=1e-6)


def test_a_fresh_memory_has_two_critics_whose_targets_are_themselves():
    learner_state = small_sac().init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    assert eqx.tree_equal(learner_state.critics, learner_state.target_critics)
    for one, other in (layer.weight for layer in learner_state.critics.layers):
        assert not jnp.allclose(one, other)
    mean, std = learner_state.encoder.distribution(jnp.array([3.0, -7.0]))
    np.testing.assert_allclose(mean, 0, atol=1e-6)
    np.testing.assert_allclose(std, 1, atol=1e-6)


# --- Several steps, and categorical critics. ---


@pytest.mark.parametrize("bootstrap_steps", [1, 2, 3, 9])
def test_rewards_are_summed_until_the_episode_or_the_unroll_ends(bootstrap_steps):
    sac = small_sac(bootstrap_steps=bootstrap_steps, discount=0.9, reward_scale=2.0)
    experience = some_experience(2)
    found = jax.tree.map(np.asarray, sac._transitions(experience))
    assert experience.terminated.any()
    assert experience.truncated.any()
    for env in range(4):
        for t in range(4):
            total, last = 0.0, t
            for last in range(t, min(t + bootstrap_steps, 4)):
                total += 0.9 ** (last - t) * 2.0 * float(experience.reward[last, env])
                if experience.terminated[last, env] or experience.truncated[last, env]:
                    break
            discount = 0.0 if experience.terminated[last, env] else 0.9 ** (last - t + 1)
            np.testing.assert_allclose(found.reward[t, env], total, rtol=1e-5)
            np.testing.assert_allclose(found.discount[t, env], discount, rtol=1e-5)
            np.testing.assert_array_equal(found.next_observation[t, env], experience.next_observation[last, env])
            np.testing.assert_array_equal(found.latent[t, env], experience.latent[t, env])


def test_categorical_critics_begin_at_zero_whatever_they_see():
    sac = small_sac(num_bins=51, value_norm=True, num_critics=3)
    learner_state = sac.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    experience = some_experience(1)
    observation, latent = experience.observation.reshape(16, -1), experience.latent.reshape(16, -1)
    outputs = sac._outputs(learner_state.critics, learner_state.encoder.statistics, observation, latent)
    assert outputs.shape == (3, 16, 51)
    np.testing.assert_allclose(sac._bins.mean(outputs), 0, atol=0.5)  # of bins that are 2.6 wide


@pytest.mark.parametrize("changes", [{}, {"pessimistic": False}])
def test_the_value_is_the_smallest_or_the_mean_of_the_critics(changes):
    sac = small_sac(num_critics=3, **changes)
    learner_state = used_memory(jax.random.key(0), num_critics=3)
    experience = some_experience(1)
    seen = experience.observation.reshape(16, -1), experience.latent.reshape(16, -1)
    each = np.asarray(sac._outputs(learner_state.critics, learner_state.encoder.statistics, *seen))[..., 0]
    found = sac._value(learner_state.critics, learner_state.encoder.statistics, *seen)
    np.testing.assert_allclose(found, each.mean(axis=0) if changes else each.min(axis=0), rtol=1e-5)


def test_a_categorical_critic_finds_the_value_of_a_state_that_pays_one_for_ever():
    # As in the test of squared errors: 1 + ½ + ¼ + .. = 2, and the best encoder is the prior.
    changes = {"num_bins": 21, "lowest_value": -1.0, "highest_value": 4.0, "value_norm": True, "pessimistic": False}
    sac = small_sac(discount=0.5, tau=0.1, learning_rate=3e-3, learn_temperature=False, **changes)
    learner_state = used_memory(jax.random.key(1), **changes)
    metrics = {}
    for seed in range(300):
        experience = some_experience(seed)
        ended = jnp.ones_like(experience.terminated)
        experience = eqx.tree_at(
            lambda e: (e.reward, e.terminated, e.truncated, e.next_observation),
            experience,
            (jnp.ones_like(experience.reward), ~ended, ended, experience.observation),
        )
        learner_state, metrics = update(sac, learner_state, experience, jax.random.key(seed))
    np.testing.assert_allclose(metrics["value"], 2.0, atol=0.1)
    assert metrics["out_of_range"] == 0


def test_targets_outside_the_bins_are_seen_in_the_metrics():
    sac = small_sac(num_bins=21, lowest_value=-1.0, highest_value=0.5)
    learner_state = sac.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    _, metrics = update(sac, learner_state, some_experience(1, first_id=100), jax.random.key(1))
    assert metrics["out_of_range"] == 1
    assert set(metrics) == set(sac.metric_names())


# --- When it learns. ---


def assert_differ(tree, other):
    """In every leaf."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    assert all(not jnp.array_equal(one, another) for one, another in pairs)


def test_nothing_is_learned_before_learning_starts(assert_same):
    sac = small_sac(learning_starts=17)
    before = used_memory(jax.random.key(0))
    waited, _ = update(sac, before, some_experience(1), jax.random.key(2))

    def learned(learner_state):
        weights = (learner_state.encoder.network, learner_state.critics, learner_state.target_critics)
        return weights, learner_state.log_temperature, learner_state.optimiser_states

    assert waited.num_seen == 16
    assert_same(learned(waited), learned(before))
    assert waited.encoder.statistics.count == before.encoder.statistics.count + 16
    np.testing.assert_array_equal(in_buffer(waited).reward, np.arange(16))

    begun, metrics = update(sac, waited, some_experience(3), jax.random.key(4))
    assert begun.num_seen == 32
    assert_differ(learned(begun), learned(before))
    assert set(metrics) == set(sac.metric_names())
    assert all(jnp.isfinite(figure) for figure in metrics.values())


def test_critics_learn_alone_until_the_encoder_starts(assert_same):
    sac = small_sac(encoder_starts=17)
    before = used_memory(jax.random.key(0))
    waited, _ = update(sac, before, some_experience(1), jax.random.key(2))
    unhurried, _ = update(small_sac(), before, some_experience(1), jax.random.key(2))

    def encoder_and_temperature(learner_state):
        encoder_state, _, temperature_state = learner_state.optimiser_states
        return learner_state.encoder.network, learner_state.log_temperature, encoder_state, temperature_state

    assert_same(encoder_and_temperature(waited), encoder_and_temperature(before))
    assert_differ((waited.critics, waited.target_critics), (before.critics, before.target_critics))
    # What they learn is the worth of the encoder as it stands, not of one that moved meanwhile.
    assert_differ(waited.critics, unhurried.critics)

    begun, _ = update(sac, waited, some_experience(3), jax.random.key(4))
    assert_differ(encoder_and_temperature(begun), encoder_and_temperature(before))


def test_there_are_so_many_gradient_steps_for_each_step_side_by_side():
    learner_state, _ = update(small_sac(), used_memory(jax.random.key(0)), some_experience(1), jax.random.key(2))
    for state in learner_state.optimiser_states:
        assert state[0].count == 4 * 2  # Adam's own count: unroll_length * updates_per_step, whatever num_envs is


# --- The replay buffer. ---


def test_the_buffer_forgets_the_oldest_steps_when_it_is_full():
    learner_state = used_memory(jax.random.key(0))
    latest = some_experience(0)
    for iteration, numbers in enumerate(([0, 16], [8, 32], [24, 48], [40, 64])):  # in 24 places
        latest = some_experience(iteration, first_id=16 * iteration)
        learner_state = remember(learner_state, latest)
        np.testing.assert_array_equal(in_buffer(learner_state).reward, np.arange(*numbers))
    held = in_buffer(learner_state)
    for name in ("observation", "latent", "reward", "next_observation"):
        newest = np.asarray(getattr(latest, name))
        np.testing.assert_array_equal(getattr(held, name)[-16:], newest.reshape(16, *newest.shape[2:]))
    np.testing.assert_array_equal(held.discount[-16:] == 0, np.asarray(latest.terminated).reshape(16))


def test_the_buffer_remembers_what_a_step_led_to_rather_than_the_restart(counting):
    config = gorl.Config(
        env=gorl.EnvConfig(counting(), training_length=3),
        learner=small_sac(buffer_size=1000, learning_starts=1_000_000),
        decoder=gorl.Identity(),
        stage_steps=(96,),
        evaluation_interval=96,
        evaluation_episodes=2,
    )
    *_, (_, state) = gorl.iterate(config, jax.random.key(0))
    remembered = state.learner_state.buffer.experience
    before, after = (np.asarray(part)[0, :96] for part in (remembered.observation, remembered.next_observation))
    # Observations are where the episode started and the steps since; every third step ends an episode.
    assert set(before[:, 1]) == {0, 1, 2}
    np.testing.assert_array_equal(after, before + np.array([0, 1]))
    assert remembered.discount[0, :96].all()


@pytest.mark.parametrize("keep_encoder", [False, True])
def test_a_stage_begins_with_an_empty_buffer(keep_encoder, assert_same):
    sac = small_sac(keep_encoder=keep_encoder)
    used, _ = update(small_sac(), used_memory(jax.random.key(0)), some_experience(1), jax.random.key(2))
    key = jax.random.key(3)
    fresh = sac.init(OBSERVATION_SIZE, LATENT_SIZE, key)
    restarted = sac.restart(used, OBSERVATION_SIZE, LATENT_SIZE, key)
    assert restarted.num_seen == 0
    assert not sac._buffer().can_sample(restarted.buffer)
    assert_same(restarted.encoder, used.encoder if keep_encoder else fresh.encoder)
    assert_same(restarted.averaged_encoder, restarted.encoder)
    encoders = (fresh.encoder, fresh.encoder)
    assert_same(eqx.tree_at(lambda m: (m.encoder, m.averaged_encoder), restarted, encoders), fresh)
    after = remember(restarted, some_experience(4, first_id=100))
    np.testing.assert_array_equal(in_buffer(after).reward, np.arange(100, 116))


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_encoder_that_is_evaluated_is_a_running_average(decay):
    sac, before = small_sac(average_decay=decay), used_memory(jax.random.key(0))
    after, _ = update(sac, before, some_experience(1), jax.random.key(2))
    evaluated = sac.evaluated_encoder(after)
    networks = [encoder.network for encoder in (before.averaged_encoder, after.encoder, evaluated)]
    for old, newest, averaged in zip(*(jax.tree.leaves(network) for network in networks), strict=True):
        np.testing.assert_allclose(averaged, decay * old + (1 - decay) * newest, rtol=1e-5, atol=1e-6)
        assert np.any(newest != old)
    np.testing.assert_array_equal(evaluated.statistics.mean, after.encoder.statistics.mean)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_learning_rate_falls_linearly_over_a_run(progress):
    """Adam's first step is as long as the learning rate, for every number that has a gradient."""
    sac = small_sac(updates_per_step=1, learning_rate=1e-2, learning_rate_decay=0.75)
    experience = jax.tree.map(lambda leaf: leaf[:1], some_experience(1))
    before = used_memory(jax.random.key(0))
    after, _ = update(sac, before, experience, jax.random.key(2), jnp.asarray(progress))
    for name in ("encoder.network", "critics", "log_temperature"):
        old, new = (jax.tree.leaves(operator.attrgetter(name)(state)) for state in (before, after))
        longest = max(np.max(np.abs(a - b)) for a, b in zip(old, new, strict=True))
        np.testing.assert_allclose(longest, 1e-2 * (1 - 0.75 * progress), rtol=1e-3)


def test_a_stage_that_diverged_leaves_no_encoder_to_keep(assert_same):
    sac, key = small_sac(keep_encoder=True), jax.random.key(3)
    used = used_memory(jax.random.key(0))
    diverged = eqx.tree_at(lambda m: m.encoder, used, jax.tree.map(lambda leaf: leaf * jnp.nan, used.encoder))
    restarted = sac.restart(diverged, OBSERVATION_SIZE, LATENT_SIZE, key)
    assert_same(restarted, sac.init(OBSERVATION_SIZE, LATENT_SIZE, key))


# --- Bad input. ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer_size": 7}, "buffer_size = 7 is smaller than learner.batch_size = 8: choose a larger buffer"),
        ({"buffer_size": 15}, "buffer_size = 15 is smaller than the 16 steps of an iteration"),
        ({"batch_size": 25}, "buffer_size = 24 is smaller than learner.batch_size = 25"),
        ({"num_unrolls": 2}, "buffer_size = 24 is smaller than the 32 steps of an iteration"),
        ({"memory_limit": 0}, "learner.memory_limit must be an integer at least 1, not 0"),
        ({"updates_per_step": 0}, "learner.updates_per_step must be an integer at least 1"),
        ({"tau": 0.0}, "learner.tau must be a number above 0 and at most 1"),
        ({"tau": 1.5}, "learner.tau must be a number above 0 and at most 1"),
        ({"initial_temperature": 0.0}, "learner.initial_temperature must be a number above 0"),
        ({"learning_starts": -1}, "learner.learning_starts must be an integer at least 0"),
        ({"num_bins": 1}, "learner.num_bins must be an integer at least 2, or none, not 1"),
        ({"num_critics": 0}, "learner.num_critics must be an integer at least 1"),
        ({"bootstrap_steps": 0}, "learner.bootstrap_steps must be an integer at least 1"),
        ({"num_bins": 11, "lowest_value": 130.0}, "learner.lowest_value = 130.0 is not below learner.highest_value"),
        ({"num_bins": 11, "discount": 1.0}, "with learner.discount = 1 the range of values does not follow"),
    ],
)
def test_a_bad_value_is_refused(changes, message):
    with pytest.raises(gorl.InputError, match=message):
        gorl.Config("PointMass", learner=small_sac(**changes), decoder=gorl.Diffusion(), stage_steps=(10_000,))


def test_sac_on_actions_takes_no_decoder():
    with pytest.raises(gorl.InputError, match="SAC learns actions themselves here, and takes no Diffusion decoder"):
        gorl.Config("PointMass", learner=small_sac(on_actions=True), decoder=gorl.Diffusion(), stage_steps=(10_000,))


@pytest.mark.parametrize("run", [gorl.train, gorl.iterate])
def test_a_buffer_beyond_the_memory_limit_is_refused_before_anything_is_compiled(run, compilations):
    # MultiGoal's transitions are 2 + 2 + 2 + 1 + 1 numbers of four bytes: 32 bytes.
    learner = small_sac(buffer_size=2**28)
    config = gorl.Config(env="MultiGoal", learner=learner, decoder=gorl.Identity(), stage_steps=(10_000,))
    key = jax.random.key(0)
    as_arrays(config)  # the first of a process compiles the conversion of a number
    for changes, message in (
        ({"memory_limit": 8191}, "buffer_size = 268435456 takes 8192 MiB, and learner.memory_limit is 8191"),
        ({"buffer_size": 2**29}, "buffer_size = 536870912 takes 16384 MiB, and learner.memory_limit is 8192"),
    ):
        changed = gorl.replace(config, {f"learner.{name}": value for name, value in changes.items()})
        compilations.clear()
        with pytest.raises(gorl.InputError, match=message):
            run(changed, key)
        assert not compilations


def test_a_buffer_within_the_memory_limit_is_taken():
    sac = small_sac(buffer_size=2**28, memory_limit=8192)
    shapes = jax.eval_shape(lambda key: sac.init(OBSERVATION_SIZE, LATENT_SIZE, key), jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.buffer.experience))
    assert size == 8192 * 2**20
