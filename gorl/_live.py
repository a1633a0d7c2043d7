"""One episode, an action at a time, into which a person may reach."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ._env import Command, EpisodeState, EpisodicEnv, Pose, commands_of, num_bodies, under_force, with_commands
from ._policy import Policy
from ._types import RandomKey


class Reach(eqx.Module):
    """What a person decides of one action.

    **Attributes:**

    - `seed`: the index of the policy that acts.
    - `spread`: the scale of the noise that becomes the latent: 0 for the mode, 1 for draws of the policy. Without a
        policy it is the scale of uniform actions.
    - `force`: on each body in N, and its torque in N m; of 0 bodies where nothing can be pushed.
    - `commands`, `is_fixed`: values of the commands, and which of them have these values rather than the task's own.
    """

    seed: Int[Array | np.ndarray, ""]
    spread: Float[Array | np.ndarray, ""]
    force: Float[Array | np.ndarray, "bodies 6"]
    commands: Float[Array | np.ndarray, " commands"]
    is_fixed: Bool[Array | np.ndarray, " commands"]


class Moment(eqx.Module):
    """What is seen of one state.

    **Attributes:**

    - `pose`: where everything is.
    - `velocity`: MuJoCo's `qvel`; of no numbers where the state has none.
    - `reward`: of the action that led here.
    - `time`: control steps since the start.
    - `done`: whether the episode is over.
    """

    pose: Pose
    velocity: Float[Array, " velocity"]
    reward: Float[Array, ""]
    time: Int[Array, ""]
    done: Bool[Array, ""]


@eqx.filter_jit
def start_live(
    env: EpisodicEnv, pose_of: Callable[[PyTree], Pose], key: RandomKey
) -> tuple[EpisodeState, Moment, Key[Array, " steps"]]:
    """Starts the episode that `gorl.evaluate` plays for the same key and `num_episodes=1`.

    **Returns:**

    The episode, what is seen of it, and a key for each action.
    """
    start_key, step_key = jax.random.split(key)
    (one,) = jax.random.split(start_key, 1)
    episode = env.start(one)
    return episode, _seen(episode, pose_of, jnp.zeros(())), jax.random.split(step_key, env.num_steps)


@eqx.filter_jit
def step_live(
    env: EpisodicEnv,
    pose_of: Callable[[PyTree], Pose],
    policies: Policy | None,
    episode: EpisodeState,
    keys: Key[Array, " steps"],
    reach: Reach,
) -> tuple[EpisodeState, Moment]:
    """Takes one action.

    **Arguments:**

    - `env`, `pose_of`: the environment, and where everything is in one of its states.
    - `policies`: the policies of all seeds; `None` for uniform actions.
    - `episode`, `keys`: those of [`start_live`][], or of the action before.
    - `reach`: what a person decides.
    """
    state = with_commands(env.env.whole, episode.state, jnp.asarray(reach.commands), jnp.asarray(reach.is_fixed))
    episode = dataclasses.replace(episode, state=state)
    (key,) = jax.random.split(keys[episode.step_count // env.action_repeat], 1)
    action = _action(env, policies, episode.observation, key, reach)

    def step(state: PyTree) -> tuple[PyTree, tuple[EpisodeState, Array]]:
        after, result = env.step(dataclasses.replace(episode, state=state), action)
        return after.state, (after, result.reward)

    if reach.force.shape[0] == 0:
        state, (after, reward) = step(state)
    else:
        state, (after, reward) = under_force(state, jnp.asarray(reach.force), step)
    after = dataclasses.replace(after, state=state)
    return after, _seen(after, pose_of, reward)


def show(model: Any, data: Any, moment: Moment) -> None:
    """Writes what is seen of a state into MuJoCo's data, and derives the rest. What is not finite changes nothing.

    **Arguments:**

    - `model`, `data`: MuJoCo's model of the scene, and data of it.
    - `moment`: what is seen.
    """
    import mujoco

    from ._env._quiet import without_warnings

    fields = {name: np.asarray(value) for name, value in moment.pose.items()}
    velocity = np.asarray(moment.velocity)
    if velocity.size == model.nv:
        fields["qvel"] = velocity
    if all(np.isfinite(value).all() for value in fields.values()):
        for name, value in fields.items():
            getattr(data, name)[:] = value
        with without_warnings():
            mujoco.mj_forward(model, data)  # pyright: ignore[reportAttributeAccessIssue]


def reachable(env: EpisodicEnv) -> tuple[int, dict[str, Command]]:
    """The number of bodies that forces can act on, and the commands that can be given."""
    state = jax.eval_shape(env.start, jax.random.key(0)).state
    return num_bodies(state), commands_of(env.env.whole, state)


def _action(
    env: EpisodicEnv, policies: Policy | None, observation: Float[Array, " observation"], key: RandomKey, reach: Reach
) -> Float[Array, " action"]:
    if policies is None:
        return jax.random.uniform(key, (env.action_size,), minval=-1.0) * jnp.asarray(reach.spread)
    policy = jax.tree.map(lambda leaf: leaf[reach.seed], policies)
    noise = jax.random.normal(key, policy.encoder.noise_shape) * jnp.asarray(reach.spread)
    return jnp.tanh(policy.decoder.decode(observation, policy.encoder.from_noise(observation, noise)))


def _seen(episode: EpisodeState, pose_of: Callable[[PyTree], Pose], reward: Float[Array, ""]) -> Moment:
    velocity = getattr(getattr(episode.state, "data", None), "qvel", jnp.zeros(0))
    return Moment(pose_of(episode.state), velocity, reward, episode.step_count, episode.done)
