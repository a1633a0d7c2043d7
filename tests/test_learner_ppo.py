import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from brax.training.agents.ppo.losses import PPONetworkParams, compute_ppo_loss
from brax.training.agents.ppo.networks import PPONetworks
from brax.training.distribution import NormalDistribution
from brax.training.networks import FeedForwardNetwork
from brax.training.types import Transition

from gorl import PPO, Experience, GaussianEncoder
from gorl._learner._clipped import standardise
from gorl._trainable import split_trainable

OBSERVATION_SIZE, LATENT_SIZE, TIME, ENVS = 5, 3, 12, 8


def small_ppo(**changes):
    sizes = {"policy_width": 16, "policy_depth": 2, "value_width": 16, "value_depth": 2}
    ppo = PPO(**{"num_envs": ENVS, "unroll_length": TIME, "num_unrolls": 1, "num_minibatches": 4, **sizes, **changes})
    return jax.tree.map(jnp.asarray, ppo)  # so that compiled code is shared between values


# The programs here take seconds to compile and milliseconds to run.
compiled = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})
update = compiled(PPO.update)


@compiled
def random_memory(ppo, key):
    """A memory whose encoder is far from N(0, I), and whose statistics are far from the identity."""
    init_key, noise_key, data_key = jax.random.split(key, 3)
    learner_state = ppo.init(OBSERVATION_SIZE, LATENT_SIZE, init_key)
    networks, fixed = eqx.partition((learner_state.encoder.network, learner_state.value), eqx.is_array)
    leaves, structure = jax.tree.flatten(networks)
    keys = jax.random.split(noise_key, len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(leaf_key, leaf.shape) for leaf, leaf_key in zip(leaves, keys, strict=True)]
    network, value = eqx.combine(jax.tree.unflatten(structure, noisy), fixed)
    statistics = learner_state.encoder.statistics.update(2 + 3 * jax.random.normal(data_key, (100, OBSERVATION_SIZE)))
    changed = (network, value, statistics)
    return eqx.tree_at(lambda m: (m.encoder.network, m.value, m.encoder.statistics), learner_state, changed)


@compiled
def random_experience(learner_state, key, *, off_policy=0.0):
    """Latents drawn by the encoder; `off_policy` makes the remembered log-densities those of another policy."""
    keys = iter(jax.random.split(key, 7))
    steps = (TIME, ENVS)
    observation = 2 + 3 * jax.random.normal(next(keys), (*steps, OBSERVATION_SIZE))
    elsewhere = 2 + 3 * jax.random.normal(next(keys), (*steps, OBSERVATION_SIZE))
    sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
    latent, log_densities = sample(observation, jax.random.split(next(keys), steps))
    ends = jax.random.bernoulli(next(keys), 0.2, steps)
    in_time = jax.random.bernoulli(next(keys), 0.5, steps)
    is_last = jnp.arange(TIME)[:, None] == TIME - 1
    return Experience(
        observation=observation,
        latent=latent,
        extras=log_densities + off_policy * jax.random.normal(next(keys), steps),
        action=latent,
        reward=jax.random.normal(next(keys), steps),
        terminated=ends & in_time,
        truncated=ends & ~in_time,
        next_observation=jnp.where((ends | is_last)[..., None], elsewhere, jnp.roll(observation, -1, axis=0)),
    )


def own_loss(ppo, learner_state, experience, standardised=True):
    """The loss, its metrics, and its gradient with respect to the policy and the value network."""
    trainable, rest = split_trainable((learner_state.encoder, learner_state.value))

    def loss(trainable):
        batch = ppo._batch(learner_state, experience)
        if standardised:
            batch = eqx.tree_at(lambda b: b.advantage, batch, standardise(batch.advantage))
        return ppo._loss(*eqx.combine(trainable, rest), learner_state.encoder.statistics, batch)

    (total, metrics), (encoder, value) = jax.value_and_grad(loss, has_aux=True)(trainable)
    return total, metrics, (encoder.network, value)


own_loss_compiled = compiled(own_loss)


@compiled
def brax_loss(ppo, learner_state, experience, normalize_advantage):
    """The same by Brax, whose networks are ours and whose distribution is a Gaussian without a tanh."""
    (network, value), fixed = eqx.partition((learner_state.encoder.network, learner_state.value), eqx.is_array)

    def policy_apply(statistics, params, observation):
        encoder = GaussianEncoder(network=eqx.combine(params, fixed[0]), statistics=statistics)
        return jax.vmap(jax.vmap(encoder.distribution))(observation)

    def value_apply(statistics, params, observation):
        apply = jnp.vectorize(eqx.combine(params, fixed[1]), signature="(n)->(m)")
        return apply(statistics.normalise(observation))[..., 0]

    brax_networks = PPONetworks(
        policy_network=FeedForwardNetwork(init=None, apply=policy_apply),
        value_network=FeedForwardNetwork(init=None, apply=value_apply),
        parametric_action_distribution=NormalDistribution(LATENT_SIZE),
    )
    # Brax has no use for a truncated step: it is told of one as of a termination that pays what comes next.
    next_values = value_apply(learner_state.encoder.statistics, value, experience.next_observation)
    later = ppo.discount * jax.lax.stop_gradient(next_values) / ppo.reward_scale
    transitions = Transition(
        observation=experience.observation,
        action=experience.action,
        reward=experience.reward + experience.truncated * later,
        discount=1.0 - (experience.terminated | experience.truncated),
        next_observation=experience.next_observation,
        extras={
            "state_extras": {"truncation": jnp.zeros((TIME, ENVS))},
            "policy_extras": {
                "raw_action": experience.latent,
                "log_prob": experience.extras,
                # For a divergence that Brax reports and the loss does not contain.
                "distribution_params": (experience.latent, jnp.ones_like(experience.latent)),
            },
        },
    )

    def loss(params):
        return compute_ppo_loss(
            params,
            learner_state.encoder.statistics,
            jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), transitions),
            jax.random.key(0),
            brax_networks,
            entropy_cost=ppo.entropy_coefficient,
            discounting=ppo.discount,
            reward_scaling=ppo.reward_scale,
            gae_lambda=ppo.gae_lambda,
            clipping_epsilon=ppo.clip_epsilon,
            normalize_advantage=normalize_advantage,
            vf_coefficient=2 * ppo.value_loss_coefficient,  # Brax halves the squared error
        )

    params = PPONetworkParams(policy=network, value=value)
    (total, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return total, metrics, (gradients.policy, gradients.value)


def assert_losses_agree(ours, theirs, ppo):
    own_total, own_metrics, own_gradients = ours
    brax_total, brax_metrics, brax_gradients = theirs
    np.testing.assert_allclose(own_total, brax_total, rtol=1e-4)
    np.testing.assert_allclose(own_metrics["policy_loss"], brax_metrics["policy_loss"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ppo.value_loss_coefficient * own_metrics["value_loss"], brax_metrics["v_loss"], rtol=1e-4
    )
    np.testing.assert_allclose(
        -ppo.entropy_coefficient * own_metrics["entropy"], brax_metrics["entropy_loss"], rtol=1e-4
    )
    for own, brax in zip(jax.tree.leaves(own_gradients), jax.tree.leaves(brax_gradients), strict=True):
        np.testing.assert_allclose(own, brax, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(brax))))


@pytest.mark.parametrize("standardised", [False, True])
def test_loss_and_gradient_agree_with_brax_under_terminations_and_truncations(standardised):
    loss = compiled(functools.partial(own_loss, standardised=standardised))
    ppo = small_ppo(
        discount=0.97,
        gae_lambda=0.9,
        clip_epsilon=0.15,
        entropy_coefficient=0.05,
        value_loss_coefficient=0.3,
        reward_scale=2.0,
    )
    for seed in range(3):
        learner_key, experience_key = jax.random.split(jax.random.key(seed))
        learner_state = random_memory(ppo, learner_key)
        experience = random_experience(learner_state, experience_key, off_policy=0.3)
        assert experience.terminated.any()
        assert experience.truncated.any()
        ours = loss(ppo, learner_state, experience)
        assert_losses_agree(ours, brax_loss(ppo, learner_state, experience, normalize_advantage=standardised), ppo)


def test_the_latent_cost_weighs_the_mean_squares_of_mean_and_deviation():
    learner_state = random_memory(small_ppo(), jax.random.key(0))
    experience = random_experience(learner_state, jax.random.key(1))
    without, *_ = own_loss_compiled(small_ppo(latent_coefficient=0.0), learner_state, experience)
    with_cost, *_ = own_loss_compiled(small_ppo(latent_coefficient=0.7), learner_state, experience)
    mean, std = jax.vmap(jax.vmap(learner_state.encoder.distribution))(experience.observation)
    np.testing.assert_allclose(with_cost - without, 0.7 * (np.mean(mean**2) + np.mean(std**2)), rtol=1e-3)


def tanh_entropy(mean, std):
    """The entropy of tanh of a Gaussian number, by adaptive quadrature in float64."""

    def integrand(value):
        return scipy.stats.norm.pdf(value, mean, std) * -2 * np.log(np.cosh(value))

    ends = (mean - 12 * std, mean + 12 * std)
    return scipy.stats.norm.entropy(mean, std) + scipy.integrate.quad(integrand, *ends, limit=500)[0]


def test_on_actions_the_entropy_is_that_of_the_action():
    learner_state = random_memory(small_ppo(), jax.random.key(0))
    observation = 2 + 3 * jax.random.normal(jax.random.key(1), (OBSERVATION_SIZE,))
    latent, log_density = learner_state.encoder.sample(observation, jax.random.key(2))
    found = (
        small_ppo(on_actions=True)
        .policy_terms(learner_state.encoder, observation, latent, log_density)
        .metrics["entropy"]
    )
    mean, std = learner_state.encoder.distribution(observation)
    exact = sum(tanh_entropy(float(m), float(s)) for m, s in zip(mean, std, strict=True))
    np.testing.assert_allclose(found, exact, atol=5e-3)


def test_a_step_along_the_entropys_gradient_makes_actions_more_random():
    # By a finite difference of the exact entropy along the direction that the cost descends.
    ppo = small_ppo(on_actions=True, entropy_coefficient=1.0)
    learner_state = random_memory(ppo, jax.random.key(0))
    observation = 2 + 3 * jax.random.normal(jax.random.key(1), (OBSERVATION_SIZE,))
    latent, log_density = learner_state.encoder.sample(observation, jax.random.key(2))
    trainable, rest = split_trainable(learner_state.encoder)

    @compiled
    @jax.grad
    def gradient(trainable):
        return ppo.policy_terms(eqx.combine(trainable, rest), observation, latent, log_density).regulariser

    downhill = jax.tree.map(jnp.negative, gradient(trainable))

    def exact_entropy(step):
        encoder = eqx.combine(jax.tree.map(lambda p, d: p + step * d, trainable, downhill), rest)
        mean, std = encoder.distribution(observation)
        return sum(tanh_entropy(float(m), float(s)) for m, s in zip(mean, std, strict=True))

    slope = (exact_entropy(1e-3) - exact_entropy(-1e-3)) / 2e-3
    squared_norm = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(downhill))
    assert slope > 0
    np.testing.assert_allclose(slope, squared_norm, rtol=0.03)


def test_the_ratio_is_one_at_the_parameters_that_collected_the_experience():
    ppo = small_ppo()
    learner_state = random_memory(ppo, jax.random.key(0))
    _, metrics, _ = own_loss_compiled(ppo, learner_state, random_experience(learner_state, jax.random.key(1)))
    np.testing.assert_allclose(metrics["approximate_kl"], 0, atol=1e-8)


def test_a_fresh_encoder_is_close_to_the_prior():
    @jax.jit
    @jax.vmap
    def fresh_distributions(init_key, observation_key):
        encoder = PPO().init(7, 3, init_key).encoder
        return jax.vmap(encoder.distribution)(jax.random.normal(observation_key, (500, 7)))

    mean, std = fresh_distributions(*jax.random.split(jax.random.key(0), (2, 5)))
    np.testing.assert_allclose(mean, 0, atol=0.05)
    np.testing.assert_allclose(std, 1, atol=0.05)


def test_a_sample_comes_with_its_log_density_under_the_encoder():
    encoder = random_memory(small_ppo(), jax.random.key(0)).encoder
    observation = jnp.arange(OBSERVATION_SIZE, dtype=jnp.float32)
    latent, remembered = encoder.sample(observation, jax.random.key(1))
    mean, std = encoder.distribution(observation)
    np.testing.assert_allclose(remembered, scipy.stats.norm.logpdf(latent, mean, std).sum(), rtol=1e-4)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_updates_move_the_mode_to_where_the_reward_is(end):
    # Every episode is one step long: the environment says so itself, or the time limit does.
    ppo = small_ppo(
        num_envs=256, unroll_length=1, num_epochs=4, num_minibatches=4, learning_rate=3e-3, reward_scale=1.0
    )
    target = jnp.array([0.5, -1.0, 0.0])

    @compiled
    def iterate(learner_state, key):
        observation_key, latent_key, update_key = jax.random.split(key, 3)
        observation = jax.random.normal(observation_key, (1, 256, OBSERVATION_SIZE))
        sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
        latent, log_densities = sample(observation, jax.random.split(latent_key, (1, 256)))
        experience = Experience(
            observation=observation,
            latent=latent,
            extras=log_densities,
            action=latent,
            reward=-jnp.sum((latent - target) ** 2, axis=-1),
            terminated=jnp.full((1, 256), end == "terminated"),
            truncated=jnp.full((1, 256), end == "truncated"),
            next_observation=observation,
        )
        return ppo.update(learner_state, experience, update_key)[0]

    learner_state = ppo.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 40):
        learner_state = iterate(learner_state, key)
    observations = jax.random.normal(jax.random.key(2), (50, OBSERVATION_SIZE))
    modes = jax.vmap(learner_state.encoder.mode)(observations)
    distance = np.mean(np.linalg.norm(modes - target, axis=-1))
    assert distance < 0.2, f"started {np.linalg.norm(target):.2f} away"


def test_an_update_brings_the_statistics_up_to_date():
    ppo = small_ppo(num_epochs=2)
    learner_state = random_memory(ppo, jax.random.key(0))
    experience = random_experience(learner_state, jax.random.key(1))
    updated, _ = update(ppo, learner_state, experience, jax.random.key(2))
    before, after = learner_state.encoder.statistics, updated.encoder.statistics
    assert after.count == before.count + TIME * ENVS
    np.testing.assert_allclose(after.mean, before.update(experience.observation).mean, rtol=1e-5)


def test_an_update_reports_its_metrics_by_name():
    ppo = small_ppo(num_epochs=2)
    learner_state = random_memory(ppo, jax.random.key(0))
    _, metrics = update(ppo, learner_state, random_experience(learner_state, jax.random.key(1)), jax.random.key(2))
    assert set(metrics) == set(ppo.metric_names())
    assert all(jnp.isfinite(figure) for figure in metrics.values())
