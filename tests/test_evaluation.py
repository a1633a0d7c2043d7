import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl

CORNERS = jnp.asarray([[0.2, 0.3], [-0.4, 0.1], [0.5, -0.6], [-0.7, -0.2]])


class FromCorners(eqx.Module):
    """MultiGoal from one of four known places, so that every possible return can be worked out by hand."""

    inner: gorl.MultiGoal = gorl.MultiGoal()
    observation_size: int = 2
    action_size: int = 2
    episode_length: int = 12

    def reset(self, key):
        corner = jax.random.choice(key, CORNERS)
        return eqx.tree_at(lambda s: s.obs, self.inner.reset(key), corner)

    def step(self, state, action):
        return self.inner.step(state, action)


def returns_step_by_step(policy, num_steps, action_repeat=1):
    """The return from every corner, in plain Python."""
    env = gorl.MultiGoal()
    blank = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    totals = []
    for corner in CORNERS:
        state, total = eqx.tree_at(lambda s: s.obs, blank, corner), 0.0
        for _ in range(num_steps):
            action = policy.mode(state.obs)
            for _ in range(action_repeat):
                state = step(state, action)
                total += float(state.reward)
        totals.append(total)
    return np.asarray(totals)


def assert_each_is_one_of(returns, possible):
    """Each return is one that is possible, and all that are possible occur."""
    assert np.ptp(possible) > 0.01  # or this would say nothing
    nearest = np.argmin(np.abs(np.asarray(returns)[:, None] - possible), axis=1)
    np.testing.assert_allclose(returns, possible[nearest], rtol=1e-4, atol=1e-4)
    assert set(nearest.tolist()) == set(range(len(possible)))


@pytest.mark.parametrize("fitted", [True, False])
def test_returns_are_those_of_a_plain_loop(make_policy, fitted):
    policy = make_policy(2, 2, fitted=fitted)
    returns = gorl.evaluate(FromCorners(), policy, jax.random.key(0), num_episodes=40)
    assert returns.shape == (40,)
    assert_each_is_one_of(returns, returns_step_by_step(policy, 12))


def test_action_repeat_holds_the_action(make_policy):
    policy = make_policy(2, 2)
    config = gorl.EnvConfig(FromCorners(), action_repeat=3)
    returns = gorl.evaluate(config, policy, jax.random.key(0), num_episodes=40)
    assert_each_is_one_of(returns, returns_step_by_step(policy, 4, action_repeat=3))


def test_an_episode_counts_up_to_the_time_limit(counting, make_policy):
    returns = gorl.evaluate(counting(episode_length=10), make_policy(2, 1), jax.random.key(0), num_episodes=3)
    assert returns.tolist() == [1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10] * 3


def test_nothing_counts_after_termination(counting, make_policy):
    returns = gorl.evaluate(counting(terminates_at=4), make_policy(2, 1), jax.random.key(0), num_episodes=3)
    assert returns.tolist() == [1 + 2 + 3 + 4] * 3


def test_episodes_may_end_at_different_times(make_policy, counting):
    class Varied(eqx.Module):
        """Terminates after two steps or after five, as the start state says."""

        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return counting().reset(key)

        def step(self, state, action):
            after = counting().step(state, action)
            return eqx.tree_at(lambda s: s.done, after, after.obs[1] >= jnp.where(after.obs[0] < 0.5, 2, 5))

    config = gorl.EnvConfig(Varied(), episode_length=8)
    returns = gorl.evaluate(config, make_policy(2, 1), jax.random.key(0), num_episodes=20)
    assert set(returns.tolist()) == {1 + 2, 1 + 2 + 3 + 4 + 5}


def test_what_comes_after_the_end_does_not_count_even_if_it_is_nan(make_policy, counting):
    class Broken(eqx.Module):
        """NaN from the step after its termination on."""

        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return counting().reset(key)

        def step(self, state, action):
            after = counting(terminates_at=3).step(state, action)
            return eqx.tree_at(lambda s: s.reward, after, jnp.where(after.obs[1] > 3, jnp.nan, after.reward))

    config = gorl.EnvConfig(Broken(), episode_length=8)
    assert gorl.evaluate(config, make_policy(2, 1), jax.random.key(0), num_episodes=2).tolist() == [6, 6]


def test_the_key_decides_the_start_states(make_policy):
    policy = make_policy(2, 2)

    def evaluate(seed):
        return gorl.evaluate("MultiGoal", policy, jax.random.key(seed), num_episodes=4)

    np.testing.assert_array_equal(evaluate(0), evaluate(0))
    assert np.all(evaluate(0) != evaluate(1))
    assert len(np.unique(evaluate(0))) == 4


def test_the_mode_earns_the_same_from_the_same_start_whatever_the_key(counting, make_policy):
    class PaysActions(eqx.Module):
        """Always starts in the same place and pays the action."""

        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return counting().reset(jax.random.key(7))

        def step(self, state, action):
            return eqx.tree_at(lambda s: s.reward, counting().step(state, action), action[0])

    config, policy = gorl.EnvConfig(PaysActions(), episode_length=5), make_policy(2, 1)

    def evaluate(seed, stochastic):
        return gorl.evaluate(config, policy, jax.random.key(seed), num_episodes=3, stochastic=stochastic)

    assert len(np.unique(np.concatenate([evaluate(0, False), evaluate(1, False)]))) == 1
    # Drawn latents differ by key, and between the episodes of one key.
    assert len(np.unique(np.concatenate([evaluate(0, True), evaluate(1, True)]))) == 6
    np.testing.assert_array_equal(evaluate(0, True), evaluate(0, True))


def test_an_environment_is_given_by_name_by_config_or_as_an_object(make_policy):
    policy, key = make_policy(2, 2), jax.random.key(0)
    by_name = gorl.evaluate("MultiGoal", policy, key, num_episodes=3)
    np.testing.assert_array_equal(gorl.evaluate(gorl.EnvConfig("MultiGoal"), policy, key, num_episodes=3), by_name)
    np.testing.assert_allclose(gorl.evaluate(gorl.MultiGoal(), policy, key, num_episodes=3), by_name, rtol=1e-5)


def test_there_are_128_episodes_unless_told_otherwise(make_policy):
    assert gorl.evaluate("MultiGoal", make_policy(2, 2), jax.random.key(0)).shape == (128,)


def test_evaluating_again_compiles_nothing(make_policy, compilations):
    first, second = make_policy(2, 2), make_policy(2, 2, seed=1)
    keys = jax.random.split(jax.random.key(0))
    first_key, second_key = keys[0], keys[1]
    gorl.evaluate("MultiGoal", first, first_key, num_episodes=3)
    compilations.clear()
    gorl.evaluate("MultiGoal", second, second_key, num_episodes=3)
    assert not compilations


@pytest.mark.parametrize("num_episodes", [0, -1])
def test_no_episodes_are_refused(make_policy, num_episodes):
    with pytest.raises(gorl.InputError, match=f"num_episodes must be at least 1, not {num_episodes}"):
        gorl.evaluate("MultiGoal", make_policy(2, 2), jax.random.key(0), num_episodes=num_episodes)


@pytest.mark.parametrize("sizes", [(3, 2), (2, 1), (17, 6)])
def test_a_policy_of_another_environment_is_refused(make_policy, compilations, sizes):
    policy, key = make_policy(*sizes), jax.random.key(0)
    compilations.clear()
    with pytest.raises(gorl.InputError, match=r"MultiGoal are \(2, 2\): give the environment that it was trained on"):
        gorl.evaluate("MultiGoal", policy, key)
    assert not compilations


def test_an_unknown_environment_is_refused(make_policy):
    with pytest.raises(gorl.InputError, match="'MultiGaol': did you mean 'MultiGoal'"):
        gorl.evaluate("MultiGaol", make_policy(2, 2), jax.random.key(0))
