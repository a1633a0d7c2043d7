import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl._env import load_environment
from gorl._evaluation import play_episodes

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


@pytest.fixture
def varied(counting):
    """Terminates after two steps or after five, as the start state says; the reward after that is NaN."""

    class Varied(eqx.Module):
        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return counting().reset(key)

        def step(self, state, action):
            after = counting().step(state, action)
            limit = jnp.where(after.obs[0] < 0.5, 2, 5)
            reward = jnp.where(after.obs[1] > limit, jnp.nan, after.reward)
            return eqx.tree_at(lambda s: (s.reward, s.done), after, (reward, after.obs[1] >= limit))

    return gorl.EnvConfig(Varied(), episode_length=8)


def test_episodes_may_end_at_different_times_and_what_comes_after_does_not_count(make_policy, varied):
    returns = gorl.evaluate(varied, make_policy(2, 1), jax.random.key(0), num_episodes=20)
    assert set(returns.tolist()) == {1 + 2, 1 + 2 + 3 + 4 + 5}


def test_an_environment_may_write_into_the_dicts_of_the_state_that_it_is_given(counting, make_policy):
    class State(eqx.Module):
        obs: jax.Array
        reward: jax.Array
        done: jax.Array
        metrics: dict

    class Writing(counting):
        """Like Brax's ant, which moreover writes numbers that are no arrays."""

        def reset(self, key):
            counted = super().reset(key)
            return State(counted.obs, counted.reward, counted.done, {"survived": jnp.zeros(())})

        def step(self, state, action):
            state.metrics.update(survived=1.0)
            counted = super().step(state, action)
            return State(counted.obs, counted.reward, counted.done, state.metrics)

    returns = gorl.evaluate(Writing(), make_policy(2, 1), jax.random.key(0), num_episodes=2)
    assert returns.tolist() == [sum(range(1, 11))] * 2


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
    returns = eqx.filter_eval_shape(gorl.evaluate, "MultiGoal", make_policy(2, 2), jax.random.key(0))
    assert returns.shape == (128,)


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


# --- Trajectories ---


@pytest.mark.parametrize("stochastic", [False, True])
def test_what_is_played_is_what_evaluate_plays(make_policy, stochastic):
    policy, key, options = make_policy(2, 2), jax.random.key(2), {"num_episodes": 3, "stochastic": stochastic}
    played = gorl.play("MultiGoal", policy, key, **options)
    returns = gorl.evaluate("MultiGoal", policy, key, **options)
    assert played.observation.shape == played.action.shape == (3, 50, 2)
    assert played.length.tolist() == [50] * 3
    np.testing.assert_allclose(played.reward.sum(axis=1), returns, rtol=1e-5)
    assert len(np.unique(returns)) == 3


def test_each_step_follows_from_the_one_before(make_policy):
    policy, env = make_policy(2, 2), gorl.MultiGoal()
    played = gorl.play("MultiGoal", policy, jax.random.key(0), num_episodes=3)
    state = env.reset(jax.random.key(0))
    for observations, actions, rewards in zip(played.observation, played.action, played.reward, strict=True):
        for time in (0, 1, 2, 25, 48):
            np.testing.assert_allclose(actions[time], policy.mode(observations[time]), rtol=1e-4, atol=1e-5)
            after = env.step(eqx.tree_at(lambda s: s.obs, state, observations[time]), actions[time])
            np.testing.assert_allclose(observations[time + 1], after.obs, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(rewards[time], after.reward, rtol=1e-5)


def test_an_episode_is_as_long_as_it_lasts_and_earns_nothing_afterwards(make_policy, varied):
    played = gorl.play(varied, make_policy(2, 1), jax.random.key(0), num_episodes=20)
    limits = np.where(played.observation[:, 0, 0] < 0.5, 2, 5)
    assert played.length.tolist() == limits.tolist()
    assert set(limits) == {2, 5}
    steps = np.arange(1, 9)
    np.testing.assert_array_equal(played.reward, np.where(steps <= limits[:, None], steps, 0))


def test_an_episode_begins_at_its_start_and_an_action_that_is_held_is_one_step(make_policy, counting):
    config = gorl.EnvConfig(counting(), action_repeat=4)
    played = gorl.play(config, make_policy(2, 1), jax.random.key(0), num_episodes=2)
    assert played.action.shape == (2, 3, 1)
    assert played.length.tolist() == [3, 3]
    assert played.observation[..., 1].tolist() == [[0, 4, 8]] * 2
    assert len(np.unique(played.observation[:, 0, 0])) == 2


@pytest.mark.parametrize("num_steps", [7, 100])
def test_episodes_that_are_left_begin_like_those_that_are_not(make_policy, assert_same, num_steps):
    policy, key, options = make_policy(2, 2), jax.random.key(0), {"num_episodes": 3, "stochastic": True}
    whole = gorl.play("MultiGoal", policy, key, **options)
    left = gorl.play("MultiGoal", policy, key, num_steps=num_steps, **options)
    length = min(num_steps, 50)
    assert left.length.tolist() == [length] * 3
    begun = gorl.Trajectories(
        whole.observation[:, :length], whole.action[:, :length], whole.reward[:, :length], left.length
    )
    assert_same(left, begun, rtol=1e-5, atol=1e-6)


def test_one_episode_is_played_unless_told_otherwise(make_policy):
    played = eqx.filter_eval_shape(gorl.play, "MultiGoal", make_policy(2, 2), jax.random.key(0))
    assert played.reward.shape == (1, 50)


def test_playing_again_compiles_nothing(make_policy, compilations):
    first, second = make_policy(2, 2), make_policy(2, 2, seed=1)
    keys = jax.random.split(jax.random.key(0))
    first_key, second_key = keys[0], keys[1]
    gorl.play("MultiGoal", first, first_key, num_episodes=3)
    compilations.clear()
    gorl.play("MultiGoal", second, second_key, num_episodes=3)
    assert not compilations


def test_returns_keep_nothing_of_each_step(make_policy):
    policy, episodes = make_policy(2, 2), load_environment(gorl.EnvConfig("MultiGoal"))
    program = jax.make_jaxpr(lambda key: play_episodes(episodes, policy, key, 3).returns)(jax.random.key(0))
    (scan,) = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert scan.params["length"] == 50
    inner = scan.params["jaxpr"].out_avals
    assert [len(variable.aval.shape) for variable in scan.outvars] == [len(aval.shape) for aval in inner]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_episodes": 0}, "num_episodes must be at least 1, not 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"num_steps": -3}, "num_steps must be at least 1, not -3"),
    ],
)
def test_nothing_to_play_is_refused(make_policy, compilations, options, sentence):
    policy, key = make_policy(2, 2), jax.random.key(0)
    compilations.clear()
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.play("MultiGoal", policy, key, **options)
    assert not compilations


def test_a_policy_of_another_environment_does_not_play(make_policy, compilations):
    policy, key = make_policy(3, 2), jax.random.key(0)
    compilations.clear()
    with pytest.raises(gorl.InputError, match=r"MultiGoal are \(2, 2\): give the environment that it was trained on"):
        gorl.play("MultiGoal", policy, key)
    assert not compilations


@pytest.mark.parametrize("use", [gorl.evaluate, gorl.play, gorl.render])
def test_several_policies_are_refused_before_anything_is_loaded(make_policy, use):
    several = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), make_policy(2, 2))
    with pytest.raises(gorl.InputError, match=r"policies of shape \(3,\), and one is needed: .* gorl\.of_seed"):
        use("no_such_module:Env", several, jax.random.key(0))


def test_several_policies_are_mapped_over(make_policy):
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), make_policy(2, 2), make_policy(2, 2, seed=1))

    def returns_of(policy):
        return gorl.evaluate(FromCorners(), policy, jax.random.key(0), num_episodes=4)

    returns = jax.vmap(returns_of)(several)
    for seed in range(2):
        np.testing.assert_allclose(returns[seed], returns_of(gorl.of_seed(several, seed)), rtol=1e-5)
