"""Observations in parts: what the policy sees, and what critics see."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl._env import load_environment
from gorl._rollout import RolloutState, rollout


class PartsState(eqx.Module):
    inner: Any
    obs: dict[str, jax.Array]

    reward = property(lambda self: self.inner.reward)
    done = property(lambda self: self.inner.done)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The built-in environment; `parts` makes each part of the observation of the whole."""

    parts: tuple
    episode_length: int = 20
    action_size: int = 2
    observation_size: None = None
    inner = gorl.MultiGoal()

    def _state(self, inner):
        return PartsState(inner, {name: make(inner.obs) for name, make in self.parts})

    def reset(self, key):
        return self._state(self.inner.reset(key))

    def step(self, state, action):
        return self._state(self.inner.step(state.inner, action))


def whole(observation):
    return observation


def first(observation):
    return observation[:1]


def with_sum(observation):
    return jnp.append(observation, jnp.sum(observation))


PRIVILEGED = Parts((("state", first), ("privileged_state", with_sum)))
SAME = Parts((("state", whole), ("privileged_state", whole)))
SEVERAL = Parts((("camera", first), ("state", whole), ("touch", with_sum)))


def small(env, learner, **changes):
    return gorl.Config(
        env=gorl.EnvConfig(env, **({"episode_length": 20} | changes)),
        learner=learner,
        decoder=gorl.Gaussian(width=8, depth=1),
        refinement=gorl.Refinement(num_episodes=8, num_validation_episodes=2, batch_size=20, num_epochs=1),
        stage_steps=(320, 320),
        evaluation_interval=320,
        evaluation_episodes=4,
    )


NETWORKS = {"policy_width": 8, "policy_depth": 1, "value_width": 8, "value_depth": 1}
STEPS = {"num_envs": 16, "unroll_length": 10}
LEARNERS = {
    "ppo": gorl.PPO(**NETWORKS, **STEPS, num_unrolls=1, num_minibatches=2, num_epochs=2, keep_value=True),
    "sac": gorl.SAC(
        **NETWORKS, **STEPS, updates_per_step=1, batch_size=32, buffer_size=1000, learning_starts=0, bootstrap_steps=2
    ),
    "reppo": gorl.REPPO(
        **{**NETWORKS, "value_depth": 2}, **STEPS, num_minibatches=2, num_epochs=2, num_bins=11, keep_critic=True
    ),
}


@pytest.mark.parametrize(
    ("env", "changes", "expected"),
    [
        (PRIVILEGED, {}, ("state", "privileged_state", 1, 3)),
        (Parts((("seen", whole),)), {}, ("seen", None, 2, None)),
        (SEVERAL, {}, ("state", None, 2, None)),
        (SEVERAL, {"policy_observation": "camera"}, ("camera", None, 1, None)),
        (SEVERAL, {"critic_observation": "touch"}, ("state", "touch", 2, 3)),
        (SEVERAL, {"critic_observation": "state"}, ("state", None, 2, None)),
        (PRIVILEGED, {"policy_observation": "privileged_state"}, ("privileged_state", None, 3, None)),
        (gorl.MultiGoal(), {}, (None, None, 2, None)),
    ],
)
def test_which_part_the_policy_sees_and_which_critics_see(env, changes, expected):
    loaded = load_environment(gorl.EnvConfig(env, **changes))
    assert (loaded.policy_part, loaded.critic_part, loaded.observation_size, loaded.critic_observation_size) == expected


@pytest.mark.parametrize(
    ("env", "changes", "sentence"),
    [
        (
            PRIVILEGED,
            {"policy_observation": "stat"},
            "no part of the observation of Parts is called 'stat': did you mean",
        ),
        (PRIVILEGED, {"critic_observation": "privileged"}, "called 'privileged': did you mean 'privileged_state'"),
        (Parts((("a", whole), ("b", first))), {}, "has the parts a, b, and none of them is called state: set env.pol"),
        (gorl.MultiGoal(), {"critic_observation": "state"}, "that of MultiGoal is one vector: leave it out"),
        ("MultiGoal", {"policy_observation": "state"}, "env.policy_observation = state chooses a part"),
        (Parts((("state", jnp.sum),)), {}, r"must be one vector of one number or more, and their shapes are .*\(\)"),
        (Parts(()), {}, "must be one vector of one number or more"),
        (Parts((("state", lambda seen: seen / 0),)), {}, "holds NaN or infinity"),
    ],
)
def test_parts_that_cannot_be_learned_from(env, changes, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        load_environment(gorl.EnvConfig(env, **changes))


def test_experience_holds_both_before_and_after_each_action():
    env = load_environment(gorl.EnvConfig(PRIVILEGED, episode_length=5))
    learner = LEARNERS["ppo"]
    state = learner.init(env.observation_size, env.action_size, jax.random.key(0), env.critic_observation_size)
    policy = gorl.Policy(learner.encoder(state), gorl.IdentityDecoder(), env.observation_size, env.action_size)
    _, experience = eqx.filter_jit(rollout)(
        env, policy, RolloutState.empty(env, 3, jax.random.key(5)), 1, 12, jax.random.key(1)
    )
    before, after = (np.asarray(part) for part in experience.for_critic())
    assert before.shape == (12, 3, 3)
    np.testing.assert_allclose(experience.observation[..., 0], before[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(experience.next_observation[..., 0], after[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(before[..., 2], before[..., 0] + before[..., 1], rtol=1e-5, atol=1e-6)
    goes_on = ~np.asarray(experience.truncated)[:-1]
    np.testing.assert_allclose(before[1:][goes_on], after[:-1][goes_on], rtol=1e-5, atol=1e-6)
    assert not goes_on.all()


def learned(env, learner):
    """The state of a learner after two iterations, but for what it knows of the observations of critics."""
    env = load_environment(gorl.EnvConfig(env, episode_length=20))

    def iteration(carry, key):
        state, rollout_state = carry
        policy = gorl.Policy(learner.encoder(state), gorl.IdentityDecoder(), env.observation_size, env.action_size)
        act_key, update_key = jax.random.split(key)
        rollout_state, experience = rollout(env, policy, rollout_state, 1, learner.unroll_length, act_key)
        return (learner.update(state, experience, update_key)[0], rollout_state), None

    @jax.jit
    def run(key):
        init_key, key = jax.random.split(key)
        state = learner.init(env.observation_size, env.action_size, init_key, env.critic_observation_size)
        start = (state, RolloutState.empty(env, learner.num_envs, jax.random.key(5)))
        return jax.lax.scan(iteration, start, jax.random.split(key, 2))[0][0]

    state = run(jax.random.key(0))
    return dataclasses.replace(state, critic_statistics=None, **({"buffer": None} if hasattr(state, "buffer") else {}))


@pytest.mark.parametrize("name", LEARNERS)
def test_critics_that_see_the_same_in_a_part_of_its_own_learn_the_same(name, assert_same):
    learner = jax.tree.map(jnp.asarray, LEARNERS[name])
    plain, parts = learned(gorl.MultiGoal(), learner), learned(SAME, learner)
    fresh = learner.init(2, 2, jax.random.split(jax.random.key(0))[0])
    assert not np.array_equal(plain.encoder.network.layers[0].weight, fresh.encoder.network.layers[0].weight)
    assert_same(parts, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_only_critics_see_is_learned_from_and_is_in_no_policy(name):
    config = small(PRIVILEGED, LEARNERS[name])
    states = [state for _, state in gorl.iterate(config, jax.random.key(0))]
    counts = [int(state.learner_state.critic_statistics.count) for state in states]
    learned = states[counts.index(160)].learner_state
    seen = np.asarray(learned.critic_statistics.mean)
    np.testing.assert_allclose(seen[2], seen[0] + seen[1], atol=1e-4)
    np.testing.assert_allclose(seen[0], learned.encoder.statistics.mean[0], atol=1e-5)

    result = gorl.finish(config, states[-1])
    assert np.isfinite(result.curve.returns).all()
    policy = result.policy
    assert policy.observation_size == 1
    assert policy.encoder.statistics.mean.shape == policy.decoder.decoder.statistics.mean.shape == (1,)
    exported = jax.export.deserialize(gorl.export_stablehlo(policy))
    assert exported.in_avals[0].shape[-1] == 1


def test_a_robot_of_ones_own_may_observe_in_parts():
    class Arm(gorl.MujocoEnv):
        def __init__(self):
            geom = '<geom type="capsule" size=".02" fromto="0 0 0 .3 0 0"/>'
            joint = '<joint name="hinge" type="hinge" axis="0 1 0" damping="1"/>'
            motor = '<actuator><motor joint="hinge" ctrlrange="-1 1" ctrllimited="true"/></actuator>'
            super().__init__(
                f"<mujoco><worldbody><body>{joint}{geom}</body></worldbody>{motor}</mujoco>", control_timestep=0.02
            )

        def start(self, data, key):
            return data.replace(qpos=jax.random.uniform(key, (1,)))

        def observe(self, data):
            return {"state": data.qpos, "privileged_state": jnp.concatenate([data.qpos, data.qvel])}

        def reward(self, data, action):
            return -jnp.abs(data.qpos[0])

    env = load_environment(gorl.EnvConfig(Arm()))
    assert (env.observation_size, env.critic_observation_size) == (1, 2)
    after, _ = env.step(env.start(jax.random.key(0)), jnp.ones(1))
    np.testing.assert_array_equal(after.observation, after.critic_observation[:1])
    assert after.critic_observation[1] != 0
    assert Arm().observation_size == {"state": 1, "privileged_state": 2}
