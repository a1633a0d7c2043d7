import dataclasses
import gc
import itertools
import subprocess
import sys
import warnings
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mujoco_playground import dm_control_suite, registry
from quick import quick_environment

import gorl
from gorl._env import load_environment
from gorl._rollout import RolloutState, rollout

BRAX = sorted(name for name in gorl.environments() if name.startswith("brax/"))


def raw_playground(name):
    return dm_control_suite.load(name, config_overrides={"impl": "jax"})


def raw_brax(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brax says at every load that its physics is no longer developed
        from brax import envs

        return envs.get_environment(name.removeprefix("brax/"), **options)


# --- The catalogue. Names and sizes are written down in gorl, so they have to be held against the real ones. ---


def test_playground_names_are_all_of_its_suites():
    names = [name for name in gorl.environments() if gorl.internal.family(name) == "Playground"]
    assert sorted(names) == sorted(registry.ALL_ENVS)
    assert len(names) == 25 + 19 + 10


def test_brax_names_are_all_of_brax_but_its_test_dummy():
    from brax import envs

    assert sorted(f"brax/{name}" for name in envs._envs if name != "fast") == BRAX


@pytest.mark.parametrize("name", dm_control_suite.ALL_ENVS)
def test_playground_sizes(name):
    env = raw_playground(name)
    assert gorl.environments()[name] == (env.observation_size, env.action_size)


@pytest.mark.parametrize("name", BRAX)
def test_brax_sizes(name):
    env = raw_brax(name)
    # Tracing finds the shapes out without compiling any physics.
    (observation_size,) = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape
    assert gorl.environments()[name] == (observation_size, env.action_size)


def test_built_in_sizes():
    env = gorl.MultiGoal()
    assert gorl.environments()["MultiGoal"] == (env.observation_size, env.action_size)


# --- Physics: what a policy meets is what the environment itself does. ---


def assert_same_steps(config, env, num_steps=3):
    episodes = load_environment(config)

    @jax.jit
    def both(episode, action):
        return *episodes.step(episode, action), env.step(episode.state, action)

    key = jax.random.key(1)
    actions = jax.random.uniform(key, (num_steps, episodes.action_size), minval=-1, maxval=1)
    episode = episodes.start(key)
    for action in actions:
        episode, result, state = both(episode, action)
        np.testing.assert_allclose(episode.observation, state.obs, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.reward, state.reward, rtol=1e-4, atol=1e-5)
        assert bool(result.terminated) == bool(state.done)
    assert episode.step_count == num_steps


def test_a_playground_task_steps_as_by_itself():
    assert_same_steps(gorl.EnvConfig("CartpoleSwingup", implementation="jax"), raw_playground("CartpoleSwingup"))


@pytest.mark.parametrize("backend", ["spring", "positional", "generalized", "mjx"])
def test_a_brax_environment_steps_as_by_itself_on_every_backend(backend):
    name = "brax/inverted_pendulum"
    assert_same_steps(gorl.EnvConfig(name, backend=backend), raw_brax(name, backend=backend))


def test_an_episode_starts_where_the_environment_itself_does():
    key, options = jax.random.key(0), {"backend": "spring"}
    start = load_environment(gorl.EnvConfig("brax/inverted_pendulum", **options)).start(key)
    state = jax.jit(raw_brax("brax/inverted_pendulum", **options).reset)(key)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), start.state, state)


def test_brax_backend_defaults_to_the_environments_own():
    # The backends keep states of different types, which tracing shows without compiling any physics.
    start = jax.eval_shape(load_environment(gorl.EnvConfig("brax/inverted_pendulum")).start, jax.random.key(0))
    state = jax.eval_shape(raw_brax("brax/inverted_pendulum").reset, jax.random.key(0))
    assert jax.tree.structure(start.state) == jax.tree.structure(state)


@pytest.mark.parametrize("name", ["CartpoleSwingup", "brax/inverted_pendulum"])
def test_episodes_of_the_shipped_environments_are_1000_steps(name):
    assert load_environment(gorl.EnvConfig(name)).num_steps == 1000


# --- The built-in environment. ---


def test_multigoal_goals_are_equally_good():
    env = gorl.MultiGoal()
    rewards = []
    for goal in env.goals:
        state = eqx.tree_at(lambda s: s.obs, env.reset(jax.random.key(0)), goal)
        rewards.append(env.step(state, jnp.zeros(2)).reward)
    assert len(rewards) == 4
    np.testing.assert_allclose(rewards, 1.0, atol=1e-6)


def test_multigoal_best_return_is_a_little_over_forty():
    env = gorl.MultiGoal()
    state, total = env.reset(jax.random.key(0)), 0.0
    step = jax.jit(env.step)
    for _ in range(env.episode_length):
        action = jnp.clip(10 * (env.goals[0] - state.obs), -1, 1)
        state = step(state, action)
        total += float(state.reward)
    assert 40 < total < 45


# --- Episodes: the time limit, termination, the action repeat. ---


def play(episodes, num_steps):
    episode, outcomes = episodes.start(jax.random.key(0)), []
    for _ in range(num_steps):
        episode, result = episodes.step(episode, jnp.zeros(episodes.action_size))
        outcomes.append(result)
    return episode, jax.tree.map(lambda *leaves: np.stack(leaves), *outcomes)


def test_the_time_limit_truncates_and_does_not_terminate(counting):
    episode, outcomes = play(load_environment(gorl.EnvConfig(counting(episode_length=4))), 4)
    assert outcomes.truncated.tolist() == [False, False, False, True]
    assert not outcomes.terminated.any()
    assert bool(episode.done)


def test_a_terminal_state_terminates_and_does_not_truncate(counting):
    episode, outcomes = play(load_environment(gorl.EnvConfig(counting(terminates_at=3))), 3)
    assert outcomes.terminated.tolist() == [False, False, True]
    assert not outcomes.truncated.any()
    assert bool(episode.done)


def test_a_terminal_state_in_the_last_step_is_a_termination_only(counting):
    # Were it called a truncation too, the value of a terminal state would leak into the advantage.
    _, outcomes = play(load_environment(gorl.EnvConfig(counting(terminates_at=4, episode_length=4))), 4)
    assert outcomes.terminated[-1]
    assert not outcomes.truncated[-1]


def test_a_configured_time_limit_takes_the_place_of_the_environments_own(counting):
    env = counting(episode_length=4)
    assert load_environment(gorl.EnvConfig(env)).num_steps == 4
    _, outcomes = play(load_environment(gorl.EnvConfig(env, episode_length=6)), 6)
    assert outcomes.truncated.tolist() == [False] * 5 + [True]


def test_action_repeat_sums_rewards_and_counts_every_control_step(counting):
    episode, outcomes = play(load_environment(gorl.EnvConfig(counting(episode_length=6), action_repeat=3)), 2)
    assert outcomes.reward.tolist() == [1 + 2 + 3, 4 + 5 + 6]
    assert outcomes.truncated.tolist() == [False, True]
    assert episode.step_count == 6


def test_action_repeat_that_does_not_divide_the_episode_ends_it_late_rather_than_early(counting):
    episodes = load_environment(gorl.EnvConfig(counting(episode_length=7), action_repeat=3))
    assert episodes.num_steps == 3
    _, outcomes = play(episodes, 3)
    assert outcomes.truncated.tolist() == [False, False, True]


def test_nothing_is_earned_after_a_termination_inside_an_action_repeat(counting):
    # The episode terminates with its third control step, the first of the second action.
    _, outcomes = play(load_environment(gorl.EnvConfig(counting(terminates_at=3), action_repeat=2)), 2)
    assert outcomes.terminated.tolist() == [False, True]
    assert outcomes.reward.tolist() == [1 + 2, 3]


class Blip(eqx.Module):
    """Says `done` in one step only, like a simulation that falls and gets up again."""

    inner: eqx.Module
    observation_size: int = 2
    action_size: int = 1

    def reset(self, key):
        return self.inner.reset(key)

    def step(self, state, action):
        after = self.inner.step(state, action)
        return eqx.tree_at(lambda s: s.done, after, (after.obs[1] == 3).astype(jnp.float32))


def test_a_termination_inside_an_action_repeat_is_not_missed(counting):
    _, outcomes = play(load_environment(gorl.EnvConfig(Blip(counting()), action_repeat=2)), 2)
    assert outcomes.terminated.tolist() == [False, True]


class BlowsUp(eqx.Module):
    """Becomes NaN in its third step, and says so, as the environments of MuJoCo Playground do."""

    inner: eqx.Module
    observation_size: int = 2
    action_size: int = 1

    def reset(self, key):
        return self.inner.reset(key)

    def step(self, state, action):
        after = self.inner.step(state, action)
        is_broken = after.obs[1] >= 3
        values = (jnp.where(is_broken, jnp.nan, after.obs), jnp.where(is_broken, jnp.nan, after.reward))
        return eqx.tree_at(lambda s: (s.obs, s.reward, s.done), after, (*values, is_broken.astype(jnp.float32)))


def test_a_simulation_that_blows_up_ends_with_a_finite_reward(counting):
    _, outcomes = play(load_environment(gorl.EnvConfig(BlowsUp(counting()))), 3)
    assert outcomes.terminated.tolist() == [False, False, True]
    assert outcomes.reward.tolist() == [1, 2, 0]


def test_a_simulation_that_blows_up_does_not_reach_the_learner(counting, make_policy):
    episodes = load_environment(gorl.EnvConfig(BlowsUp(counting())))
    _, experience = rollout(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 4, jax.random.key(5)),
        3,
        4,
        jax.random.key(0),
    )
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(experience))


def test_a_robot_that_does_not_look_ends_its_episode_too():
    """Go1's task asks only whether the robot has fallen, and NaN has not."""
    episodes = load_environment(gorl.EnvConfig("Go1JoystickFlatTerrain"))
    start = episodes.start(jax.random.key(0))
    broken = dataclasses.replace(start, state=start.state.tree_replace({"data.qpos": start.state.data.qpos * jnp.nan}))
    for episode, expected in ((start, False), (broken, True)):
        _, outcome = episodes.step(episode, jnp.zeros(12))
        assert bool(outcome.terminated) == expected
        assert np.isfinite(outcome.reward)
    raw = episodes.env.whole.step(broken.state, jnp.zeros(12))
    assert not bool(raw.done)  # so that nobody but us has seen it


# --- Rollouts: restarts, and what is recorded. ---


def test_a_restart_draws_a_fresh_start_state_every_time(counting, make_policy):
    # The public GoRL code returns to the first start state of each slot for ever.
    episodes, policy = load_environment(gorl.EnvConfig(counting(episode_length=6))), make_policy(2, 1, plain=True)
    _, experience = rollout(
        episodes, policy, RolloutState.empty(episodes, 2, jax.random.key(5)), 60, 4, jax.random.key(0)
    )
    starts = experience.observation[experience.observation[..., 1] == 0][:, 0]
    assert len(starts) == 2 * 60 * 4 / 6
    assert len(np.unique(starts)) == len(starts)


def test_an_episode_runs_on_into_the_next_rollout(counting, make_policy):
    episodes, policy = load_environment(gorl.EnvConfig(counting(episode_length=7))), make_policy(2, 1, plain=True)
    rollout_state, first = rollout(
        episodes, policy, RolloutState.empty(episodes, 3, jax.random.key(5)), 1, 5, jax.random.key(0)
    )
    _, second = rollout(episodes, policy, rollout_state, 1, 5, jax.random.key(1))
    counts = np.concatenate([first.observation[:, 0, 1], second.observation[:, 0, 1]])
    assert counts.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    np.testing.assert_array_equal(second.observation[0], first.next_observation[-1])
    assert np.concatenate([first.truncated[:, 0], second.truncated[:, 0]]).nonzero()[0].tolist() == [6]


def test_termination_restarts_one_environment_and_leaves_the_others_alone(counting, make_policy):
    class Sooner(eqx.Module):
        """Terminates after two steps where the start state is small."""

        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return counting().reset(key)

        def step(self, state, action):
            after = counting().step(state, action)
            ends = (after.obs[0] < 0.5) & (after.obs[1] >= 2)
            return eqx.tree_at(lambda s: s.done, after, ends.astype(jnp.float32))

    episodes = load_environment(gorl.EnvConfig(Sooner()))
    _, experience = rollout(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 32, jax.random.key(5)),
        1,
        3,
        jax.random.key(0),
    )
    ends_soon = np.asarray(experience.observation[0, :, 0] < 0.5)
    assert 0 < ends_soon.sum() < 32
    np.testing.assert_array_equal(experience.terminated[1], ends_soon)
    np.testing.assert_array_equal(experience.observation[2, :, 1], np.where(ends_soon, 0, 2))


def test_recorded_observations_are_those_that_were_acted_on(make_policy):
    episodes, policy = load_environment(gorl.EnvConfig("MultiGoal", episode_length=7)), make_policy(2, 2)
    _, experience = rollout(
        episodes, policy, RolloutState.empty(episodes, 4, jax.random.key(5)), 2, 5, jax.random.key(0)
    )

    def act(observation, latent):
        mean, std = policy.encoder.distribution(observation)
        log_density = jnp.sum(jax.scipy.stats.norm.logpdf(latent, mean, std))
        return log_density, policy.decoder.decode(observation, latent)

    log_density, action = jax.vmap(jax.vmap(act))(experience.observation, experience.latent)
    np.testing.assert_allclose(experience.extras, log_density, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(experience.action, action, rtol=1e-4, atol=1e-4)


def test_the_environment_receives_the_tanh_of_the_recorded_action(make_policy):
    env = gorl.MultiGoal()
    episodes = load_environment(gorl.EnvConfig("MultiGoal"))
    _, experience = rollout(
        episodes,
        make_policy(2, 2, plain=True),
        RolloutState.empty(episodes, 4, jax.random.key(5)),
        1,
        6,
        jax.random.key(0),
    )
    # MultiGoal's state is its observation, so that a step can be done again from what was recorded.
    blank = jax.tree.map(jnp.zeros_like, env.reset(jax.random.key(0)))

    def again(observation, action):
        return env.step(eqx.tree_at(lambda s: s.obs, blank, observation), jnp.tanh(action))

    after = jax.vmap(jax.vmap(again))(experience.observation, experience.action)
    np.testing.assert_allclose(after.obs[:-1], experience.observation[1:], atol=1e-6)
    np.testing.assert_allclose(experience.observation[1:], experience.next_observation[:-1], atol=1e-6)
    np.testing.assert_allclose(after.reward, experience.reward, rtol=1e-5, atol=1e-7)


def test_training_length_cuts_training_episodes(counting, make_policy):
    episodes = load_environment(gorl.EnvConfig(counting(), training_length=3)).in_training
    _, experience = rollout(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 2, jax.random.key(5)),
        1,
        6,
        jax.random.key(0),
    )
    assert experience.truncated[:, 0].tolist() == [False, False, True] * 2
    assert not experience.terminated.any()


def test_training_length_leaves_evaluation_alone(counting, make_policy):
    config = gorl.EnvConfig(counting(), training_length=3)
    returns = gorl.evaluate(config, make_policy(2, 1, plain=True), jax.random.key(0), num_episodes=2)
    assert returns.tolist() == [sum(range(1, 11))] * 2


# --- Any object with the shape of an environment. ---


class Careless(eqx.Module):
    """An environment whose types change from `reset` to `step`."""

    inner: eqx.Module
    start: tuple = eqx.field(static=True)
    after: tuple = eqx.field(static=True)
    observation_size: int = 2
    action_size: int = 1

    def reset(self, key):
        return self._with(self.inner.reset(key), self.start)

    def step(self, state, action):
        return self._with(self.inner.step(state, action), self.after)

    def _with(self, state, convert):
        values = (convert[0](state.reward), convert[1](state.done))
        return eqx.tree_at(lambda s: (s.reward, s.done), state, values)


def _weak(value):
    return jnp.where(value > 0, 1.0, 0.0)


def _float(value):
    return jnp.asarray(value, jnp.float32)


def _int(value):
    return jnp.asarray(value, jnp.int32)


def _bool(value):
    return jnp.asarray(value, bool)


@pytest.mark.parametrize(
    ("start", "after"),
    [
        ((_float, _float), (_float, _bool)),
        ((_float, _bool), (_float, _float)),
        ((_int, _bool), (_int, _bool)),
        ((_float, _float), (_float, _weak)),
        ((_float, lambda value: jnp.asarray(0.0)), (_float, _float)),
        ((lambda value: 0.0, lambda value: 0.0), (_float, _float)),
    ],
    ids=["bool step", "float step", "int reward", "weak step", "weak start", "python numbers start"],
)
def test_careless_types_are_matched(counting, make_policy, start, after):
    env = Careless(counting(terminates_at=3), start, after)
    episodes = load_environment(gorl.EnvConfig(env))
    _, experience = rollout(
        episodes,
        make_policy(2, 1, plain=True),
        RolloutState.empty(episodes, 2, jax.random.key(5)),
        1,
        6,
        jax.random.key(0),
    )
    assert experience.reward[:, 0].tolist() == [1, 2, 3] * 2
    assert experience.terminated[:, 0].tolist() == [False, False, True] * 2
    assert experience.reward.dtype == jnp.float32
    assert experience.terminated.dtype == bool


def test_a_fractional_reward_survives_a_reset_that_starts_with_an_integer(counting):
    class Half(eqx.Module):
        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return eqx.tree_at(lambda s: s.reward, counting().reset(key), jnp.asarray(0))

        def step(self, state, action):
            return eqx.tree_at(lambda s: s.reward, counting().step(state, action), jnp.asarray(0.5))

    _, outcomes = play(load_environment(gorl.EnvConfig(Half())), 2)
    assert outcomes.reward.tolist() == [0.5, 0.5]


class MixedState(eqx.Module):
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    steps: jax.Array
    was_pushed: jax.Array
    key: jax.Array


class Mixed(eqx.Module):
    """Begins with whole numbers, by oversight, where its steps have fractions."""

    observation_size: int = 2
    action_size: int = 2

    def reset(self, key):
        return MixedState(jnp.array([0, 0]), jnp.array(0), jnp.array(False), jnp.array(0), jnp.array(False), key)

    def step(self, state, action):
        obs = state.obs + 0.1 * action
        push = state.was_pushed + 0.25  # a flag in reset, a number in step
        return MixedState(obs, obs[0], jnp.array(0.0), state.steps + 0.5, push, jax.random.split(state.key)[0])


def test_a_state_has_the_wider_type_of_reset_and_step_in_every_field():
    env = Mixed()
    episodes = load_environment(gorl.EnvConfig(env))
    state, episode = env.reset(jax.random.key(0)), episodes.start(jax.random.key(0))
    for _ in range(4):
        state = env.step(state, jnp.ones(2))
        episode, result = episodes.step(episode, jnp.ones(2))
        assert result.reward == state.reward
    for name in ("obs", "reward", "done", "steps", "was_pushed"):
        np.testing.assert_array_equal(getattr(episode.state, name), getattr(state, name))
    assert episode.state.steps == 2.0
    assert episode.state.was_pushed == 1.0


def test_a_state_keeps_its_types_where_reset_and_step_agree(counting):
    env = counting()
    start = jax.eval_shape(load_environment(gorl.EnvConfig(env)).start, jax.random.key(0)).state
    own = jax.eval_shape(env.reset, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.dtype, start) == jax.tree.map(lambda leaf: leaf.dtype, own)


def test_a_key_that_becomes_a_number_is_refused(counting):
    class Confused(eqx.Module):
        observation_size: int = 2
        action_size: int = 2

        def reset(self, key):
            return eqx.tree_at(lambda s: s.key, Mixed().reset(key), jnp.array(0))

        def step(self, state, action):
            return Mixed().step(eqx.tree_at(lambda s: s.key, state, jax.random.key(0)), action)

    with pytest.raises(gorl.InputError, match="give both the same type"):
        load_environment(gorl.EnvConfig(Confused())).start(jax.random.key(0))


def test_a_reward_that_is_nan_from_the_first_step_is_refused(counting):
    class Unpaid(eqx.Module):
        observation_size: int = 2
        action_size: int = 1

        def reset(self, key):
            return counting().reset(key)

        def step(self, state, action):
            return eqx.tree_at(lambda s: s.reward, counting().step(state, action), jnp.log(-1.0))

    with pytest.raises(gorl.InputError, match=r"the reward that Unpaid\.step returns is nan"):
        load_environment(gorl.EnvConfig(Unpaid()))


def test_an_object_without_an_episode_length_has_a_thousand_steps(counting):
    assert load_environment(gorl.EnvConfig(Blip(counting()))).num_steps == 1000


def test_an_environment_object_goes_straight_into_a_config(counting):
    env = counting()
    config = gorl.Config(env=env)
    assert config.env.name == gorl.EnvConfig(env).name
    assert load_environment(config.env).observation_size == 2
    assert config == gorl.Config(env=env)
    assert config != gorl.Config(env=counting())


_module_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of an importable module with an environment as a class, a function and an object."""
    name = f"gorl_test_environments_{next(_module_numbers)}"
    (tmp_path / f"{name}.py").write_text(
        "import gorl\n"
        "class Short(gorl.MultiGoal):\n"
        "    episode_length: int = 7\n"
        "def make():\n"
        "    return Short()\n"
        "made = make()\n"
        "def nothing():\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["Short", "make", "made"])
def test_an_environment_of_ones_own_by_name(module, attribute):
    episodes = load_environment(gorl.EnvConfig(f"{module}:{attribute}"))
    assert (episodes.num_steps, episodes.observation_size, episodes.action_size) == (7, 2, 2)


def test_a_config_with_an_environment_of_ones_own_goes_through_json(module):
    config = gorl.Config(env=f"{module}:make")
    assert gorl.Config.from_json(config.to_json()) == config


# --- Bad input: one sentence that says how to mend it. ---


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("CheetaRun", "CheetahRun"),
        ("cheetahrun", "CheetahRun"),
        ("pointmass", "PointMass"),
        ("brax/halfcheeta", "brax/halfcheetah"),
        ("ant", "brax/ant"),
        ("Multigoal", "MultiGoal"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(misspelt, meant):
    with pytest.raises(gorl.InputError, match=f"{misspelt}.*did you mean.*'{meant}'"):
        gorl.Config(env=misspelt)


def test_input_errors_are_value_errors():
    with pytest.raises(ValueError, match="CheetahRun"):
        load_environment(gorl.EnvConfig("CheetaRun"))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (gorl.EnvConfig("PointMass", backend="mjx"), "backend is for Brax's .* PointMass .*leave it out"),
        (gorl.EnvConfig("MultiGoal", backend="spring"), "backend is for Brax's .* MultiGoal .*leave it out"),
        (gorl.EnvConfig("brax/ant", backend="sprin"), "'sprin'.*did you mean 'spring'"),
        (gorl.EnvConfig("brax/ant", implementation="jax"), "implementation is for .* brax/ant .*leave it out"),
        (gorl.EnvConfig("PointMass", implementation="jaxx"), "'jaxx'.*did you mean 'jax'"),
        (gorl.EnvConfig("PointMass", implementation="mujco"), "'mujco'.*did you mean 'mujoco'"),
    ],
)
def test_an_option_that_does_not_fit_the_environment(env, message):
    with pytest.raises(gorl.InputError, match=message):
        gorl.Config(env=env)


def test_a_brax_environment_that_does_not_run_on_a_backend():
    with pytest.raises(gorl.InputError, match="brax/swimmer does not run on the spring backend: choose another"):
        load_environment(gorl.EnvConfig("brax/swimmer", backend="spring"))


@pytest.mark.parametrize(
    "name", ["no_such_module_anywhere:Env", "gorl:NoSuchEnv", "gorl:", ":MultiGoal", "gorl.no_such_module:Env"]
)
def test_a_name_that_cannot_be_imported(name):
    with pytest.raises(gorl.InputError, match="cannot be imported"):
        load_environment(gorl.EnvConfig(name))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["x = {}.missing"], "line 2: AttributeError: 'dict' object has no attribute 'missing'"),
        (["def f():", "    raise KeyError", "f()"], "line 3: KeyError"),
        (["import jax", "jax.numpy.zeros(3).reshape(2)"], "line 3: TypeError: "),
        (["import no_such_module_anywhere"], "line 2: ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        (["raise SystemExit('usage')"], "line 2: SystemExit: usage"),
        (["def f(:"], "invalid syntax"),
        (["from gorl_test_helper import x"], "gorl_test_helper.py, line 1: ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_raises_is_named_with_the_line(tmp_path, monkeypatch, lines, said):
    name = f"gorl_test_broken_{next(_module_numbers)}"
    (tmp_path / f"{name}.py").write_text("\n".join(["import math", *lines]))
    (tmp_path / "gorl_test_helper.py").write_text("x = 1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(gorl.InputError) as refused:
        load_environment(gorl.EnvConfig(f"{name}:Env"))
    assert str(refused.value).startswith(f"the environment '{name}:Env' cannot be imported: ")
    assert said in str(refused.value)
    assert ".py" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_class_that_cannot_be_made_without_arguments_is_named_with_the_line(tmp_path, monkeypatch):
    name = f"gorl_test_broken_{next(_module_numbers)}"
    (tmp_path / f"{name}.py").write_text("def takes(size): ...\ndef raises():\n    assert False, 'no size'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(gorl.InputError, match=r"call without arguments: takes\(\) missing 1 required .*: 'size'\.$"):
        load_environment(gorl.EnvConfig(f"{name}:takes"))
    with pytest.raises(gorl.InputError, match=r"broken_\d+\.py, line 3: AssertionError: no size\.$"):
        load_environment(gorl.EnvConfig(f"{name}:raises"))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("./envs.py:Walk", "write envs:Walk."),
        ("envs.py", "write envs:NAME."),
        ("lab/envs.py:Walk", "write lab.envs:Walk."),
        ("./envs:Walk", "write envs:Walk."),
        ("/lab/envs.py:Walk", "write envs:Walk where /lab is the current directory or in PYTHONPATH."),
        ("../envs.py:Walk", "write envs:Walk where .. is the current directory or in PYTHONPATH."),
        ("lab.envs.Walk", "write lab.envs:Walk."),
    ],
)
def test_a_file_or_a_dot_where_a_module_and_a_colon_belong(name, right):
    for load in (lambda: load_environment(gorl.EnvConfig(name)), lambda: gorl.preset("MultiGoal", method=name)):
        with pytest.raises(gorl.InputError) as refused:
            load()
        assert str(refused.value).endswith(right)


def test_a_name_of_something_that_is_no_environment(module):
    with pytest.raises(gorl.InputError, match="is no environment: it lacks reset, step"):
        load_environment(gorl.EnvConfig(f"{module}:nothing"))


def modified(env, **changes):
    """`env` with the parts in `changes` replaced, or left out where they are None."""
    parts = {name: getattr(env, name) for name in ("reset", "step", "observation_size", "action_size")}
    return type("Modified", (), {name: part for name, part in (parts | changes).items() if part is not None})


@pytest.mark.parametrize("part", ["reset", "step", "observation_size", "action_size"])
def test_an_object_that_lacks_a_part(counting, part):
    env = modified(counting(), **{part: None})()
    with pytest.raises(gorl.InputError, match=f"Modified is no environment: it lacks {part} .*gorl.Environment"):
        load_environment(gorl.EnvConfig(env))


def test_a_class_in_place_of_an_object(counting):
    with pytest.raises(gorl.InputError):
        load_environment(gorl.EnvConfig(counting))


def changed_state(function, **changes):
    """`function` with what it returns changed."""

    def call(*args):
        state = function(*args)
        return eqx.tree_at(lambda s: [getattr(s, name) for name in changes], state, list(changes.values()))

    return staticmethod(call)


@pytest.mark.parametrize("method", ["reset", "step"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_an_observation_that_is_not_finite(counting, method, value):
    env = counting()
    bad = jnp.asarray([0.5, value])
    broken = modified(env, **{method: changed_state(getattr(env, method), obs=bad)})()
    with pytest.raises(gorl.InputError, match=rf"Modified\.{method} returns holds NaN or infinity: mend"):
        load_environment(gorl.EnvConfig(broken))


def test_an_observation_of_the_wrong_length(counting):
    env = counting()
    broken = modified(env, observation_size=3)()
    with pytest.raises(
        gorl.InputError, match=r"one vector of observation_size = 3 numbers, or a dictionary of vectors, not \(2,\)"
    ):
        load_environment(gorl.EnvConfig(broken))


def test_an_observation_that_is_no_vector(counting):
    env = counting()
    broken = modified(env, reset=changed_state(env.reset, obs=(jnp.zeros(2),)))()
    with pytest.raises(gorl.InputError, match="one vector of observation_size = 2 numbers"):
        load_environment(gorl.EnvConfig(broken))


@pytest.mark.parametrize("part", ["reward", "done"])
@pytest.mark.parametrize("method", ["reset", "step"])
def test_a_reward_or_done_that_is_no_scalar(counting, method, part):
    env = counting()
    broken = modified(env, **{method: changed_state(getattr(env, method), **{part: jnp.zeros(1)})})()
    with pytest.raises(gorl.InputError, match="scalar reward and a scalar done"):
        load_environment(gorl.EnvConfig(broken))


def test_a_state_that_lacks_a_part(counting):
    broken = modified(counting(), reset=staticmethod(lambda key: {"obs": jnp.zeros(2)}))()
    with pytest.raises(gorl.InputError, match="lacks 'obs'"):
        load_environment(gorl.EnvConfig(broken))


@dataclasses.dataclass
class PlainState:
    """A state that is no pytree."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array


@pytest.mark.parametrize("method", ["reset", "step"])
def test_a_state_that_is_no_pytree(counting, method):
    env = counting()

    def plain(*arguments):
        state = getattr(env, method)(*arguments)
        return PlainState(state.obs, state.reward, state.done)

    broken = modified(env, **{method: staticmethod(plain)})()
    sentence = rf"the state that Modified\.{method} returns is a PlainState, .*: make PlainState an equinox\.Module, or"
    with pytest.raises(gorl.InputError, match=sentence):
        load_environment(gorl.EnvConfig(broken))


def test_a_state_with_something_in_it_that_is_no_array(counting):
    env = counting()
    broken = modified(env, reset=staticmethod(lambda key: WithExtra(env.reset(key), "a name")))()
    with pytest.raises(
        gorl.InputError, match=r"\.extra of the state that .*reset returns is a str, .*: leave it out\."
    ):
        load_environment(gorl.EnvConfig(broken))


def test_reset_and_step_of_different_structure(counting, tiny):
    env = counting()
    broken = modified(env, step=staticmethod(lambda state, action: WithExtra(env.step(state, action), jnp.zeros(1))))()
    with pytest.raises(gorl.InputError, match=r"different structure.*same fields"):
        gorl.train(gorl.replace(tiny, {"env": gorl.EnvConfig(broken)}), jax.random.key(0))


class WithExtra(eqx.Module):
    """A state with something more in it."""

    inner: eqx.Module
    extra: jax.Array

    obs = property(lambda self: self.inner.obs)
    reward = property(lambda self: self.inner.reward)
    done = property(lambda self: self.inner.done)


def test_reset_and_step_with_arrays_of_different_shape(counting, tiny):
    env = counting()
    broken = modified(
        env,
        reset=staticmethod(lambda key: WithExtra(env.reset(key), jnp.zeros(1))),
        step=staticmethod(lambda state, action: WithExtra(env.step(state.inner, action), jnp.zeros(2))),
    )()
    with pytest.raises(gorl.InputError, match=r"shape \(1,\) where step returns one of shape \(2,\)"):
        gorl.train(gorl.replace(tiny, {"env": gorl.EnvConfig(broken)}), jax.random.key(0))


# --- Environments that do what GoRL does. ---


def created():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brax import envs

        return envs.create("inverted_pendulum", backend="spring", episode_length=20)


def trained_on():
    from brax.envs.wrappers import training

    return training.wrap(raw_brax("inverted_pendulum", backend="spring"))


def for_brax_training():
    from mujoco_playground import wrapper

    return wrapper.wrap_for_brax_training(raw_playground("CartpoleBalance"))


@pytest.mark.parametrize(
    ("wrapped", "names", "inside"),
    [
        (created, "AutoResetWrapper and EpisodeWrapper", "env.env.env"),
        (trained_on, "AutoResetWrapper and EpisodeWrapper and VmapWrapper", "env.env.env.env"),
        (for_brax_training, "BraxAutoResetWrapper and EpisodeWrapper and VmapWrapper", "env.env.env.env"),
    ],
)
def test_an_environment_wrapped_for_training_is_refused_with_the_way_to_the_one_inside(wrapped, names, inside):
    env = wrapped()
    with pytest.raises(gorl.InputError, match=rf"wrapped in {names}, .*the environment inside, {inside}, .*EnvConfig"):
        load_environment(gorl.EnvConfig(env))
    bare = eval(inside, {"env": env})
    assert not hasattr(bare, "env")
    assert bare is env.unwrapped


def test_wrappers_for_training_inside_one_of_ones_own_are_found():
    from brax.envs.base import Wrapper

    class Mine(Wrapper):
        pass

    with pytest.raises(gorl.InputError, match=r"wrapped in AutoResetWrapper and EpisodeWrapper, .*: leave them out"):
        load_environment(gorl.EnvConfig(Mine(created())))


def test_a_wrapper_of_ones_own_is_kept(counting):
    from brax.envs.base import Wrapper

    class Twice(Wrapper):
        def step(self, state, action):
            after = self.env.step(state, action)
            return eqx.tree_at(lambda s: s.reward, after, 2 * after.reward)

    _, outcomes = play(load_environment(gorl.EnvConfig(Twice(counting()))), 3)
    assert outcomes.reward.tolist() == [2, 4, 6]


class LikeGymnax:
    """The shape of Gymnax's environments: `step` takes a key, returns a tuple and resets by itself."""

    num_actions = 2

    def reset(self, key, params=None):
        return self.reset_env(key, params)

    def step(self, key, state, action, params=None):
        return self.step_env(key, state, action, params)

    def reset_env(self, key, params):
        return jnp.zeros(2), jnp.zeros(2)

    def step_env(self, key, state, action, params):
        return state, state, jnp.zeros(()), jnp.zeros((), bool), {}


class LikeAGymnaxWrapper:
    def __init__(self, env):
        self._env = env
        self.step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    def __getattr__(self, name):
        return getattr(self._env, name)


@pytest.mark.parametrize("env", [LikeGymnax(), LikeAGymnaxWrapper(LikeGymnax())])
def test_an_environment_like_those_of_gymnax_is_refused_with_the_way_to_take_it(env):
    with pytest.raises(gorl.InputError, match=r"\.step must take state and action .*Gymnax.* reset_env and step_env"):
        load_environment(gorl.EnvConfig(env))


def test_the_methods_have_to_take_what_they_are_given(counting):
    env = counting()
    for method, arguments in (("reset", "key"), ("step", "state and action")):
        broken = modified(env, **{method: staticmethod(lambda: None)})()
        with pytest.raises(gorl.InputError, match=rf"Modified\.{method} must take {arguments} and nothing else"):
            load_environment(gorl.EnvConfig(broken))


def test_an_object_given_by_name_that_is_no_environment_is_not_called(tmp_path, monkeypatch):
    name = f"like_gymnax_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("env = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(gorl.InputError, match="is no environment: it lacks reset, step"):
        load_environment(gorl.EnvConfig(f"{name}:env"))


@pytest.mark.parametrize("part", ["observation_size", "action_size"])
@pytest.mark.parametrize("size", [0, -1, 2.0, (2,), {"state": (2,)}, None])
def test_a_size_that_is_none_is_refused_before_anything_is_compiled(counting, compilations, part, size):
    env = modified(counting(), **{part: 1})()
    setattr(env, part, size)
    with pytest.raises(gorl.InputError, match=rf"Modified\.{part} must be a whole number of at least 1, not "):
        load_environment(gorl.EnvConfig(env))
    assert not compilations


# --- Loading again. ---


def test_an_environment_of_ones_own_with_the_name_of_a_task_keeps_its_sizes(counting):
    env = type("CheetahRun", (type(counting()),), {"__module__": __name__})()
    episodes = load_environment(gorl.EnvConfig(env))
    assert (episodes.observation_size, episodes.action_size) == (2, 1)


def test_environments_that_are_not_used_any_more_are_forgotten(counting):
    first = counting()
    config = gorl.EnvConfig(first)
    assert load_environment(config) is load_environment(gorl.EnvConfig(first))
    forgotten = weakref.ref(first)
    del first, config
    for _ in range(20):
        load_environment(gorl.EnvConfig(counting()))
    jax.clear_caches()
    gc.collect()
    assert forgotten() is None


def test_an_environment_that_is_loaded_again_compiles_nothing_again(counting, make_policy, compilations):
    config, policy = gorl.EnvConfig(counting()), make_policy(2, 1, plain=True)

    def returns():
        return gorl.evaluate(config, policy, jax.random.key(0), num_episodes=2)

    once = returns()
    for _ in range(20):
        load_environment(gorl.EnvConfig(counting()))
    load_environment(config)  # its own check compiles
    compilations.clear()
    np.testing.assert_array_equal(returns(), once)
    assert not compilations


WITHOUT_WARP = """
import importlib.util, sys
import gorl

gorl.load_environment(gorl.EnvConfig("PointMass"))
assert "warp" not in sys.modules and "mujoco.mjx" in sys.modules
assert importlib.util.find_spec("warp") is not None  # it can be imported afterwards
"""


def test_a_cpu_does_not_import_warp():
    # In a process that has imported nothing yet.
    done = subprocess.run([sys.executable, "-c", WITHOUT_WARP], env=quick_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
