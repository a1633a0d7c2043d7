"""The time limit, the action repeat and the restart, around any environment."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._errors import InputError
from .._tree import all_finite
from .._types import RandomKey


class EpisodeState(eqx.Module):
    """The state of one episode.

    **Attributes:**

    - `state`: the environment's own state.
    - `step_count`: control steps since the start.
    - `done`: whether the episode has ended.
    - `policy_part`, `critic_part`: the parts of the observation that the policy and critics see; `None` for the whole
        observation and for what the policy sees.
    """

    state: PyTree
    step_count: Int[Array, "*batch"]
    done: Bool[Array, "*batch"]
    policy_part: str | None = eqx.field(static=True, default=None)
    critic_part: str | None = eqx.field(static=True, default=None)

    @property
    def observation(self) -> Float[Array, "*batch observation"]:
        """What the policy sees now."""
        return self.state.obs if self.policy_part is None else self.state.obs[self.policy_part]

    @property
    def critic_observation(self) -> Float[Array, "*batch critic_observation"] | None:
        """What critics see now; `None` for what the policy sees."""
        return None if self.critic_part is None else self.state.obs[self.critic_part]


class StepResult(eqx.Module):
    """The result of one action.

    **Attributes:**

    - `reward`: the sum of the rewards of the control steps that the action was held for.
    - `terminated`: whether the environment ended the episode.
    - `truncated`: whether the time limit ended it, and the environment did not.
    - `terms`: sums over control steps of what the environment reports: the entries of its `metrics` that begin with
        `"reward/"`, `"terminated/"` or `"measure/"`.
    """

    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    terms: dict[str, Float[Array, "*batch"]]


class EpisodicEnv(eqx.Module):
    """An environment with a time limit and an action repeat, as pure functions of one episode: `vmap` outside.

    **Arguments:**

    - `env`: the environment.
    - `observation_size`, `action_size`: the lengths of its observations and actions.
    - `episode_length`: control steps until the time limit.
    - `training_length`: the same in training.
    - `action_repeat`: control steps for which each action is held.
    - `policy_part`, `critic_part`: as in `EpisodeState`.
    - `critic_observation_size`: the length of what critics see; `None` for what the policy sees.
    """

    env: Any = eqx.field(static=True)  # hashable, with the `reset` and `step` of an `Environment`
    observation_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    episode_length: int = eqx.field(static=True)
    training_length: int = eqx.field(static=True)
    action_repeat: int = eqx.field(static=True)
    policy_part: str | None = eqx.field(static=True, default=None)
    critic_part: str | None = eqx.field(static=True, default=None)
    critic_observation_size: int | None = eqx.field(static=True, default=None)

    @property
    def num_steps(self) -> int:
        """The number of actions in a whole episode."""
        return -(-self.episode_length // self.action_repeat)

    @property
    def in_training(self) -> "EpisodicEnv":
        """The same environment with the time limit of training."""
        return dataclasses.replace(self, episode_length=self.training_length)

    # Tracing physics takes as long as compiling it. Each function has a `jit` of its own, so it is traced once for all
    # rollouts and evaluations.
    @eqx.filter_jit
    def start(self, key: RandomKey) -> EpisodeState:
        """Starts an episode; `key` decides its start state."""
        # If the types of start and step differed, every scan over an episode would be traced twice.
        state = self._widened(jax.tree.map(_strong, self.env.reset(key)))
        parts = (self.policy_part, self.critic_part)
        return EpisodeState(state, jnp.zeros((), jnp.int32), jnp.zeros((), bool), *parts)

    @eqx.filter_jit
    def step(self, episode: EpisodeState, action: Float[Array, " action"]) -> tuple[EpisodeState, StepResult]:
        """Takes one action. An episode that is done is not restarted."""

        def control_step(
            carry: tuple[PyTree, Array], _: None
        ) -> tuple[tuple[PyTree, Array], tuple[Array, dict[str, Array]]]:
            state, terminated = carry
            after = self.env.step(state, action)
            # Half of Playground's robots do not look whether their simulation blew up.
            done = jnp.asarray(after.done, bool) | _is_broken(after)
            # The reward of `reset` may be an integer where that of `step` is not.
            earned = (jnp.asarray(after.reward, jnp.float32), _terms(after))
            after = jax.tree.map(lambda old, new: jax.lax.convert_element_type(new, old.dtype), state, after)
            if self.action_repeat > 1:  # an episode may terminate while an action is held
                after = optax.tree.where(terminated, state, after)
                earned = jax.tree.map(lambda leaf: jnp.where(terminated, 0.0, leaf), earned)
            # A simulation that blew up ends its episode, and its last reward means nothing.
            earned = jax.tree.map(lambda leaf: jnp.where(done & ~jnp.isfinite(leaf), 0.0, leaf), earned)
            return (after, terminated | done), earned

        carry = (episode.state, jnp.zeros((), bool))
        if self.action_repeat == 1:
            (state, terminated), (reward, terms) = control_step(carry, None)
        else:
            (state, terminated), earned = jax.lax.scan(control_step, carry, None, self.action_repeat)
            reward, terms = jax.tree.map(jnp.sum, earned)
        step_count = episode.step_count + self.action_repeat
        truncated = (step_count >= self.episode_length) & ~terminated
        after = dataclasses.replace(episode, state=state, step_count=step_count, done=terminated | truncated)
        return after, StepResult(reward, terminated, truncated, terms)

    @property
    def term_names(self) -> tuple[str, ...]:
        """The names of `StepResult.terms`."""
        return tuple(jax.eval_shape(lambda key: _terms(self.start(key).state), jax.random.key(0)))

    def _widened(self, state: PyTree) -> PyTree:
        """Converts every field of `state` to the wider of the types that `reset` and `step` give it."""
        action = jax.ShapeDtypeStruct((self.action_size,), jnp.float32)
        while True:
            after = jax.eval_shape(self.env.step, state, action)
            wider = _wider(state, after)
            if [leaf.dtype for leaf in jax.tree.leaves(state)] == jax.tree.leaves(wider):
                return state
            state = jax.tree.map(jax.lax.convert_element_type, state, wider)

    def empty(self, num_envs: int) -> EpisodeState:
        """`num_envs` episodes that are all done: a rollout begins by starting them."""
        shapes = jax.eval_shape(self.start, jax.random.key(0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros((num_envs, *leaf.shape), leaf.dtype), shapes)
        return dataclasses.replace(zeros, done=~zeros.done)


def _is_broken(state: PyTree) -> Bool[Array, ""]:
    """Whether a state has MuJoCo's data, and its positions or velocities are not finite."""
    data: Any = getattr(state, "data", None)
    if not hasattr(data, "qpos") or not hasattr(data, "qvel"):
        return jnp.zeros((), bool)
    return ~all_finite((data.qpos, data.qvel))


def _terms(state: PyTree) -> dict[str, Array]:
    """What of a state's metrics is a term of the reward, a termination or a measurement."""
    metrics = getattr(state, "metrics", None)
    if not isinstance(metrics, Mapping):
        return {}
    return {
        name: jax.lax.convert_element_type(metrics[name], jnp.float32)
        for name in sorted(metrics)
        if name.startswith(("reward/", "terminated/", "measure/"))
    }


def restart(start: EpisodeState, episode: EpisodeState) -> EpisodeState:
    """`start` if the episode is done, else `episode`."""
    return optax.tree.where(episode.done, start, episode)


def _strong(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def _wider(before: PyTree, after: PyTree) -> PyTree:
    """The type of each leaf of a state that holds both the value of `reset` and that of `step`."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise InputError(
            "this environment's reset and step return states of different structure: give both the same fields "
            "(an entry that only step sets must be set by reset as well)."
        )

    def widest(old: Any, new: Any) -> Any:
        if jnp.shape(old) != jnp.shape(new):
            raise InputError(
                f"this environment's reset returns an array of shape {jnp.shape(old)} where step returns one of shape "
                f"{jnp.shape(new)}: give both the same shape."
            )
        if old.dtype == new.dtype:
            return old.dtype
        if jnp.issubdtype(old.dtype, jax.dtypes.extended) or jnp.issubdtype(new.dtype, jax.dtypes.extended):
            raise InputError(
                f"this environment's reset returns {old.dtype} where step returns {new.dtype}: give both the same type."
            )
        return jax.dtypes.canonicalize_dtype(jnp.promote_types(old.dtype, new.dtype))

    return jax.tree.map(widest, before, after)
