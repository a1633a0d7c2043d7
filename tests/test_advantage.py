import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.ppo.losses import compute_gae

from gorl._advantage import generalised_advantage

TIME, ENVS = 40, 16


def random_stretch(seed, end_probability=0.1):
    """Rewards, values, the final value, and ends of either kind (never both at one step)."""
    reward_key, value_key, final_key, end_key, kind_key = jax.random.split(jax.random.key(seed), 5)
    ends = jax.random.bernoulli(end_key, end_probability, (TIME, ENVS))
    in_time = jax.random.bernoulli(kind_key, 0.5, (TIME, ENVS))
    return (
        jax.random.normal(reward_key, (TIME, ENVS)),
        3 * jax.random.normal(value_key, (TIME, ENVS)),
        3 * jax.random.normal(final_key, (ENVS,)),
        ends & in_time,
        ends & ~in_time,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 0.95), (0.9, 0.5), (1.0, 1.0), (0.95, 0.0)])
def test_agrees_with_brax_on_random_terminations_and_truncations(seed, discount, gae_lambda):
    rewards, values, final_value, terminated, truncated = random_stretch(seed)
    advantages, targets = generalised_advantage(
        rewards, values, final_value, terminated, truncated, discount, gae_lambda
    )
    brax_targets, brax_advantages = compute_gae(
        truncated.astype(jnp.float32),
        terminated.astype(jnp.float32),
        rewards,
        values,
        final_value,
        lambda_=gae_lambda,
        discount=discount,
    )
    np.testing.assert_allclose(advantages, brax_advantages, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(targets, brax_targets, rtol=1e-5, atol=1e-5)


def test_without_ends_and_with_lambda_one_targets_are_discounted_sums():
    rewards, values, final_value, terminated, truncated = random_stretch(0, end_probability=0.0)
    advantages, targets = generalised_advantage(rewards, values, final_value, terminated, truncated, 0.97, 1.0)
    returns = np.asarray(final_value, np.float64)
    for t in reversed(range(TIME)):
        returns = np.asarray(rewards[t]) + 0.97 * returns
        np.testing.assert_allclose(targets[t], returns, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(advantages[t], returns - np.asarray(values[t]), rtol=1e-4, atol=1e-4)


def test_a_truncated_step_has_no_advantage_and_its_value_for_a_target():
    rewards, values, final_value, terminated, truncated = random_stretch(0)
    advantages, targets = generalised_advantage(rewards, values, final_value, terminated, truncated, 0.99, 0.95)
    assert truncated.any()
    np.testing.assert_array_equal(advantages[truncated], 0)
    np.testing.assert_array_equal(targets[truncated], values[truncated])


def test_a_terminal_step_is_worth_its_reward_alone():
    rewards, values, final_value, terminated, truncated = random_stretch(0)
    advantages, targets = generalised_advantage(rewards, values, final_value, terminated, truncated, 0.99, 0.95)
    assert terminated.any()
    np.testing.assert_allclose(targets[terminated], rewards[terminated], atol=1e-5)
    np.testing.assert_allclose(advantages[terminated], (rewards - values)[terminated], atol=1e-5)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_what_follows_an_end_does_not_reach_the_steps_before_it(kind):
    rewards, values, final_value, *_ = random_stretch(0)
    end, never = jnp.zeros((TIME, ENVS), bool).at[20].set(True), jnp.zeros((TIME, ENVS), bool)
    ends = (end, never) if kind == "terminated" else (never, end)
    before, _ = generalised_advantage(rewards, values, final_value, *ends, 0.99, 0.95)
    after, _ = generalised_advantage(
        rewards.at[21:].add(5.0), values.at[21:].add(5.0), final_value + 5.0, *ends, 0.99, 0.95
    )
    np.testing.assert_array_equal(after[:21], before[:21])
    assert not np.allclose(after[21:], before[21:])


def test_the_reward_of_a_truncated_step_reaches_nothing():
    rewards, values, final_value, terminated, truncated = random_stretch(0)
    changed = jnp.where(truncated, 1e3, rewards)
    before = generalised_advantage(rewards, values, final_value, terminated, truncated, 0.99, 0.95)
    after = generalised_advantage(changed, values, final_value, terminated, truncated, 0.99, 0.95)
    jax.tree.map(np.testing.assert_array_equal, after, before)
