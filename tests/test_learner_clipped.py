import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gorl
from gorl import DPPO, FPO, PPO
from gorl._learner import Experience
from gorl._learner._clipped import clipped_objective, standardise
from gorl._trainable import split_trainable

OBSERVATION_SIZE, LATENT_SIZE = 5, 3
LEARNERS = [PPO, FPO, DPPO]


def small(kind, **changes):
    sizes = {"policy_width": 4, "policy_depth": 1, "value_width": 4, "value_depth": 1}
    return kind(num_envs=4, unroll_length=6, num_unrolls=1, num_minibatches=2, **sizes, **changes)


def used_memory(learner):
    """A memory that differs from a fresh one everywhere: in its networks, its statistics and its optimiser state."""
    learner_state = learner.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 1 if eqx.is_inexact_array(leaf) else leaf, learner_state)


def fresh_and_restarted(learner):
    key = jax.random.key(1)
    fresh = learner.init(OBSERVATION_SIZE, LATENT_SIZE, key)
    return fresh, learner.restart(used_memory(learner), OBSERVATION_SIZE, LATENT_SIZE, key)


def forget_statistics(encoder):
    return eqx.tree_at(lambda e: e.statistics, encoder, gorl.RunningStatistics.empty(OBSERVATION_SIZE))


# --- The objective. ---


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("num_ratios", [1, 4])
@pytest.mark.parametrize("clip_epsilon", [0.05, 0.2])
def test_the_clipped_objective_against_numpy(num_ratios, clip_epsilon, asymmetric):
    rng = np.random.default_rng(0)
    log_ratio, advantage = rng.normal(0, 0.5, (64, num_ratios)), rng.normal(size=64)
    total = 0.0
    for i in range(64):
        for j in range(num_ratios):
            ratio = np.exp(log_ratio[i, j])
            if asymmetric and advantage[i] < 0:
                surrogate = ratio * advantage[i] - abs(advantage[i]) / (2 * clip_epsilon) * (ratio - 1) ** 2
            else:
                surrogate = min(
                    ratio * advantage[i], min(max(ratio, 1 - clip_epsilon), 1 + clip_epsilon) * advantage[i]
                )
            total += surrogate
    objective = clipped_objective(
        jnp.asarray(log_ratio, jnp.float32),
        jnp.asarray(advantage, jnp.float32),
        clip_epsilon,
        asymmetric=asymmetric,
    )
    np.testing.assert_allclose(objective, total / (64 * num_ratios), rtol=1e-4)


def slope(ratio, advantage, asymmetric):
    """How the objective of one step changes with its log-ratio."""

    def objective(log_ratio):
        arguments = log_ratio.reshape(1, 1), jnp.array([advantage]), 0.2
        return clipped_objective(*arguments, asymmetric=asymmetric)

    return float(jax.grad(objective)(jnp.log(ratio)))


def test_beyond_the_trust_region_the_clip_leaves_no_gradient():
    assert slope(1.3, 2.0, asymmetric=False) == 0
    assert slope(1.3, 2.0, asymmetric=True) == 0
    assert slope(0.7, -2.0, asymmetric=False) == 0


def test_beyond_the_trust_region_the_asymmetric_penalty_pulls_back_where_the_advantage_is_negative():
    # d/dr [rA - |A|/(2ε) (r - 1)²] = A - |A|/ε (r - 1), which vanishes at r = 1 - ε; the log-ratio brings a factor r.
    for ratio in (0.7, 0.79, 0.81, 1.0, 1.3):
        expected = ratio * (-2.0 - 2.0 / 0.2 * (ratio - 1))
        np.testing.assert_allclose(slope(ratio, -2.0, asymmetric=True), expected, rtol=1e-4)
    assert slope(0.7, -2.0, asymmetric=True) > 0 > slope(0.81, -2.0, asymmetric=True)


def test_a_large_ratio_of_a_bad_step_is_pulled_down_either_way():
    assert slope(1.3, -2.0, asymmetric=False) < 0
    assert slope(0.7, 2.0, asymmetric=False) > 0


def test_standardised_advantages_against_numpy():
    advantage = np.random.default_rng(0).normal(3, 5, 50)
    expected = (advantage - advantage.mean()) / advantage.std()
    np.testing.assert_allclose(standardise(jnp.asarray(advantage, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_equal_advantages_standardise_to_zero():
    np.testing.assert_array_equal(standardise(jnp.full(8, 3.0)), np.zeros(8))


def first_experience(learner_state):
    """Steps of the encoder itself, at observations that move its statistics far."""
    observation = 5 + 3 * jax.random.normal(jax.random.key(1), (6, 4, OBSERVATION_SIZE))
    sample = jax.vmap(jax.vmap(learner_state.encoder.sample))
    latent, extras = sample(observation, jax.random.split(jax.random.key(2), (6, 4)))
    never = jnp.zeros((6, 4), bool)
    reward = observation[..., 0]
    return Experience(observation, latent, extras, latent, reward, never, never, observation)


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_ratios_of_the_first_gradient_step_are_one(kind):
    # Had the statistics been renewed before, every ratio would be off.
    learner = gorl.replace(small(kind), {"num_epochs": 1, "num_minibatches": 1})
    learner_state = learner.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    experience = first_experience(learner_state)
    updated, metrics = learner.update(learner_state, experience, jax.random.key(3))
    assert abs(metrics["approximate_kl"]) < 1e-6
    assert metrics["clip_fraction"] == 0
    assert np.linalg.norm(updated.encoder.statistics.mean - 5) < 3


@pytest.mark.parametrize(
    ("learning_rate_decay", "progress", "share"), [(0.0, 0.7, 1.0), (0.8, 0.5, 0.6), (1.0, 1.0, 0.0)]
)
def test_the_learning_rate_falls_with_the_run(learning_rate_decay, progress, share):
    # Adam's steps are proportional to its learning rate.
    learner = gorl.replace(small(PPO), {"num_epochs": 1, "num_minibatches": 1})
    learner_state = learner.init(OBSERVATION_SIZE, LATENT_SIZE, jax.random.key(0))
    experience = first_experience(learner_state)

    def moved(learning_rate_decay, progress):
        annealed = gorl.replace(learner, {"learning_rate_decay": learning_rate_decay})
        after, _ = annealed.update(learner_state, experience, jax.random.key(3), progress)
        new, old = (ravel_pytree(split_trainable((m.encoder, m.value))[0])[0] for m in (after, learner_state))
        return new - old

    constant = moved(0.0, 0.0)
    assert jnp.any(constant != 0)
    np.testing.assert_allclose(moved(learning_rate_decay, progress), share * constant, rtol=1e-3, atol=1e-6)


# --- What outlives a stage. ---


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_stage_begins_with_everything_fresh(kind, assert_same):
    learner = small(kind)
    fresh, restarted = fresh_and_restarted(learner)
    assert_same(restarted, fresh)
    assert not eqx.tree_equal(restarted.encoder, used_memory(learner).encoder)


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_value_network_can_be_kept_with_its_statistics(kind, assert_same):
    learner = small(kind, keep_value=True)
    fresh, restarted = fresh_and_restarted(learner)
    used = used_memory(learner)
    assert_same(restarted.value, used.value)
    assert_same(restarted.encoder.statistics, used.encoder.statistics)
    assert_same(forget_statistics(restarted.encoder), fresh.encoder)
    assert_same(restarted.optimiser_state, fresh.optimiser_state)


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_encoder_can_be_kept_with_its_statistics(kind, assert_same):
    learner = small(kind, keep_encoder=True)
    fresh, restarted = fresh_and_restarted(learner)
    assert_same(restarted.encoder, used_memory(learner).encoder)
    assert_same(restarted.value, fresh.value)
    assert_same(restarted.optimiser_state, fresh.optimiser_state)


@pytest.mark.parametrize("kind", LEARNERS)
def test_both_networks_can_be_kept_but_not_the_optimiser_state(kind, assert_same):
    learner = small(kind, keep_encoder=True, keep_value=True)
    fresh, restarted = fresh_and_restarted(learner)
    used = used_memory(learner)
    assert_same(restarted.encoder, used.encoder)
    assert_same(restarted.value, used.value)
    assert_same(restarted.optimiser_state, fresh.optimiser_state)


@pytest.mark.parametrize("part", ["encoder", "value", "optimiser_state"])
def test_a_stage_that_diverged_leaves_nothing_to_keep(part, assert_same):
    learner, key = small(PPO, keep_encoder=True, keep_value=True), jax.random.key(1)
    learner_state = used_memory(learner)
    broken = jax.tree.map(
        lambda leaf: leaf * jnp.nan if eqx.is_inexact_array(leaf) else leaf, getattr(learner_state, part)
    )
    diverged = eqx.tree_at(lambda m: getattr(m, part), learner_state, broken)
    restarted = learner.restart(diverged, OBSERVATION_SIZE, LATENT_SIZE, key)
    assert_same(restarted, learner.init(OBSERVATION_SIZE, LATENT_SIZE, key))


@pytest.mark.parametrize("keep_value", [False, True])
def test_a_stage_can_begin_with_the_features_of_the_last_one_and_yet_at_the_prior(keep_value, assert_same):
    learner = small(PPO, keep_features=True, keep_value=keep_value)
    fresh, restarted = fresh_and_restarted(learner)
    used = used_memory(learner)
    assert_same(restarted.encoder.network.layers[:-1], used.encoder.network.layers[:-1])
    assert_same(restarted.encoder.statistics, used.encoder.statistics)
    assert_same(restarted.value, used.value if keep_value else fresh.value)
    assert_same(restarted.optimiser_state, fresh.optimiser_state)
    observations = jax.random.normal(jax.random.key(2), (20, OBSERVATION_SIZE))
    used_mean, _ = jax.vmap(used.encoder.distribution)(observations)
    assert jnp.std(used_mean) > 0.1
    mean, std = jax.vmap(restarted.encoder.distribution)(observations)
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_allclose(std, 1, rtol=1e-6)


def test_an_encoder_that_is_kept_is_kept_whole(assert_same):
    learner = small(PPO, keep_encoder=True, keep_features=True)
    _, restarted = fresh_and_restarted(learner)
    assert_same(restarted.encoder, used_memory(learner).encoder)


# --- Bad input. ---


@pytest.mark.parametrize("kind", LEARNERS)
def test_minibatches_that_do_not_divide_the_steps_are_refused(kind):
    with pytest.raises(gorl.InputError, match="num_minibatches = 7 does not divide the 24 steps"):
        gorl.replace(small(kind), {"num_minibatches": 7}).check()


@pytest.mark.parametrize("kind", [FPO, DPPO])
@pytest.mark.parametrize("decoder", [gorl.FlowMatching(), gorl.Diffusion(), gorl.Gaussian()])
def test_a_decoder_for_a_learner_of_actions_is_refused(kind, decoder):
    name = type(decoder).__name__
    with pytest.raises(gorl.InputError, match=rf"{kind.__name__} learns actions .* no {name} decoder.*gorl.Identity"):
        gorl.Config("PointMass", learner=small(kind), decoder=decoder, stage_steps=(10_000,))


def test_a_decoder_for_ppo_on_actions_is_refused():
    with pytest.raises(gorl.InputError, match="PPO learns actions themselves here, and takes no FlowMatching decoder"):
        gorl.Config(
            "PointMass", learner=small(PPO, on_actions=True), decoder=gorl.FlowMatching(), stage_steps=(10_000,)
        )


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_identity_with_more_than_one_stage_is_refused(kind):
    with pytest.raises(gorl.InputError, match="identity decoder cannot be refined: give it one stage"):
        gorl.Config("PointMass", learner=small(kind), decoder=gorl.Identity(), stage_steps=(10_000, 10_000))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (FPO, "num_steps", 0),
        (FPO, "num_noise_samples", 0),
        (FPO, "num_frequencies", 0),
        (DPPO, "num_steps", 0),
        (DPPO, "num_frequencies", 0),
        (DPPO, "step_std", 0.0),
        (DPPO, "step_std", float("nan")),
        (PPO, "clip_epsilon", 0.0),
        (PPO, "entropy_coefficient", -1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind, name, value):
    with pytest.raises(gorl.InputError, match=f"learner.{name} must be an? "):
        gorl.Config("PointMass", learner=small(kind, **{name: value}), decoder=gorl.Identity(), stage_steps=(10_000,))
