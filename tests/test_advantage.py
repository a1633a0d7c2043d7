import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.ppo.losses import compute_gae

from gorl._advantage import generalised_advantage

TIME, ENVS = 40, 16


def random_stretch(seed, end_probability=0.1):
    """Rewards, values, next values, and ends of either kind (never both at one step)."""
    reward_key, value_key, next_key, end_key, kind_key = jax.random.split(jax.random.key(seed), 5)
    ends = jax.random.bernoulli(end_key, end_probability, (TIME, ENVS))
    in_time = jax.random.bernoulli(kind_key, 0.5, (TIME, ENVS))
    values = 3 * jax.random.normal(value_key, (TIME, ENVS))
    elsewhere = 3 * jax.random.normal(next_key, (TIME, ENVS))
    is_last = jnp.arange(TIME)[:, None] == TIME - 1
    # Where an episode goes on, the next state is the one that the next step is taken in.
    next_values = jnp.where(ends | is_last, elsewhere, jnp.roll(values, -1, axis=0))
    return jax.random.normal(reward_key, (TIME, ENVS)), values, next_values, ends & in_time, ends & ~in_time


def by_a_slow_loop(rewards, values, next_values, terminated, truncated, discount, gae_lambda):
    """Each step's targets and advantage as a sum over the steps that follow it in its episode, in double precision."""
    rewards, values, next_values = (np.asarray(array, np.float64) for array in (rewards, values, next_values))
    targets, advantages = np.zeros((TIME, ENVS)), np.zeros((TIME, ENVS))
    for env in range(ENVS):
        for start in range(TIME):
            sum_of_errors, weight = 0.0, 1.0
            for t in range(start, TIME):
                worth = rewards[t, env] + (0.0 if terminated[t, env] else discount * next_values[t, env])
                sum_of_errors += weight * (worth - values[t, env])
                weight *= discount * gae_lambda
                if terminated[t, env] or truncated[t, env]:
                    break
            targets[start, env] = values[start, env] + sum_of_errors
        for t in range(TIME):
            ends_here = truncated[t, env] or t == TIME - 1
            later = next_values[t, env] if ends_here else targets[t + 1, env]
            worth = rewards[t, env] + (0.0 if terminated[t, env] else discount * later)
            advantages[t, env] = worth - values[t, env]
    return advantages, targets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 0.95), (0.9, 0.5), (1.0, 1.0), (0.95, 0.0)])
def test_agrees_with_a_slow_loop_on_random_terminations_and_truncations(seed, discount, gae_lambda):
    stretch = random_stretch(seed)
    found = generalised_advantage(*stretch, discount, gae_lambda)
    for ours, slow in zip(found, by_a_slow_loop(*stretch, discount, gae_lambda), strict=True):
        np.testing.assert_allclose(ours, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 0.95), (0.9, 0.5), (1.0, 1.0), (0.95, 0.0)])
def test_agrees_with_brax_where_truncations_are_terminations_that_pay_what_comes_next(seed, discount, gae_lambda):
    # Brax has no use for a truncated step, so it is told of one in terms that it knows.
    rewards, values, next_values, terminated, truncated = random_stretch(seed)
    found = generalised_advantage(rewards, values, next_values, terminated, truncated, discount, gae_lambda)
    brax_targets, brax_advantages = compute_gae(
        jnp.zeros((TIME, ENVS)),
        (terminated | truncated).astype(jnp.float32),
        rewards + discount * truncated * next_values,
        values,
        next_values[-1],
        lambda_=gae_lambda,
        discount=discount,
    )
    np.testing.assert_allclose(found[0], brax_advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], brax_targets, rtol=1e-4, atol=1e-5)


def test_without_ends_and_with_lambda_one_targets_are_discounted_sums():
    rewards, values, next_values, terminated, truncated = random_stretch(0, end_probability=0.0)
    advantages, targets = generalised_advantage(rewards, values, next_values, terminated, truncated, 0.97, 1.0)
    returns = np.asarray(next_values[-1], np.float64)
    for t in reversed(range(TIME)):
        returns = np.asarray(rewards[t]) + 0.97 * returns
        np.testing.assert_allclose(targets[t], returns, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(advantages[t], returns - np.asarray(values[t]), rtol=1e-4, atol=1e-4)


def test_a_truncated_step_is_worth_its_reward_and_what_it_led_to():
    rewards, values, next_values, terminated, truncated = random_stretch(0)
    advantages, targets = generalised_advantage(rewards, values, next_values, terminated, truncated, 0.99, 0.95)
    assert truncated.any()
    worth = rewards + 0.99 * next_values
    np.testing.assert_allclose(targets[truncated], worth[truncated], atol=1e-5)
    np.testing.assert_allclose(advantages[truncated], (worth - values)[truncated], atol=1e-5)


def test_a_terminal_step_is_worth_its_reward_alone():
    rewards, values, next_values, terminated, truncated = random_stretch(0)
    advantages, targets = generalised_advantage(rewards, values, next_values, terminated, truncated, 0.99, 0.95)
    assert terminated.any()
    np.testing.assert_allclose(targets[terminated], rewards[terminated], atol=1e-5)
    np.testing.assert_allclose(advantages[terminated], (rewards - values)[terminated], atol=1e-5)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_what_follows_an_end_does_not_reach_the_steps_before_it(kind):
    rewards, values, next_values, *_ = random_stretch(0)
    end, never = jnp.zeros((TIME, ENVS), bool).at[20].set(True), jnp.zeros((TIME, ENVS), bool)
    ends = (end, never) if kind == "terminated" else (never, end)
    before, _ = generalised_advantage(rewards, values, next_values, *ends, 0.99, 0.95)
    after, _ = generalised_advantage(
        rewards.at[21:].add(5.0), values.at[21:].add(5.0), next_values.at[21:].add(5.0), *ends, 0.99, 0.95
    )
    np.testing.assert_array_equal(after[:21], before[:21])
    assert not np.allclose(after[21:], before[21:])
