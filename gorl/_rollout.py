"""Rollouts: experience for a learner, and the dataset that a decoder is fitted to."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ._backend import all_rows, largest_divisor, num_parts, own_rows
from ._env import EpisodeState, EpisodicEnv, restart
from ._learner import Experience
from ._policy import Policy
from ._types import RandomKey, RandomKeys


class RolloutState(eqx.Module):
    """The state of parallel environments between two rollouts.

    **Attributes:**

    - `episode`: the running episode of each environment.
    - `start`: the start state of the next episode of each; it is done where it has been used.
    - `head_start`: the step count that the next episode of each begins with.
    - `keys`: of the start states that each environment has not drawn yet.
    """

    episode: EpisodeState
    start: EpisodeState
    head_start: Int[Array, " envs"]
    keys: Key[Array, " envs"]

    @staticmethod
    def begin(env: EpisodicEnv, num_envs: int, key: RandomKey, *, staggered: bool) -> "RolloutState":
        """The environments as a stage begins."""
        return (RolloutState.staggered if staggered else RolloutState.empty)(env, num_envs, key)

    @staticmethod
    def empty(env: EpisodicEnv, num_envs: int, key: RandomKey) -> "RolloutState":
        """No episode is running and no start state is drawn: the first step of a rollout begins with both."""
        keys = own_rows(jax.random.split(key, num_envs), num_envs)
        empty = env.empty(keys.size)
        return RolloutState(empty, empty, jnp.zeros(keys.size, jnp.int32), keys)

    @staticmethod
    def staggered(env: EpisodicEnv, num_envs: int, key: RandomKey) -> "RolloutState":
        """As `empty`, but the first episode of each environment begins at a random step count.

        Environments whose episodes all have the same length are then out of step with each other.
        """
        step_key, start_key = jax.random.split(key)
        head_start = own_rows(jax.random.randint(step_key, (num_envs,), 0, env.episode_length), num_envs)
        return eqx.tree_at(lambda w: w.head_start, RolloutState.empty(env, num_envs, start_key), head_start)


def rollout(
    env: EpisodicEnv, policy: Policy, rollout_state: RolloutState, num_unrolls: int, unroll_length: int, key: RandomKey
) -> tuple[RolloutState, Experience]:
    """Acts for `num_unrolls * unroll_length` steps in every environment.

    When an episode is done, the next one begins from a start state that was drawn before. When an environment has no
    start state left, new ones are drawn for all environments that have none. (A draw at every step would double the
    cost of the physics, or more: a reset of CheetahRun takes 200 physics steps.) Each environment has keys of its own,
    so that it draws the same start states whenever that is.

    **Arguments:**

    - `env`: the environment.
    - `policy`: acts stochastically.
    - `rollout_state`: the state of the environments.
    - `num_unrolls`, `unroll_length`: their product is the number of steps.
    - `key`: decides the latents.

    **Returns:**

    The new state of the environments, and the experience.
    """
    num_envs = rollout_state.keys.size * num_parts()
    keys = jax.random.split(key, num_unrolls)
    rollout_state, seen = _unroll(env, policy, rollout_state, num_envs, keys, unroll_length)
    seen = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)
    seen = all_rows(seen, num_envs, axis=1)
    before, latent, extras, action, result, after = seen
    (observation, critic_observation), (next_observation, next_critic_observation) = before, after
    return rollout_state, Experience(
        observation,
        latent,
        extras,
        action,
        result.reward,
        result.terminated,
        result.truncated,
        next_observation,
        critic_observation,
        next_critic_observation,
    )


def _unroll(
    env: EpisodicEnv,
    policy: Policy,
    rollout_state: RolloutState,
    num_envs: int,
    keys: RandomKeys,
    unroll_length: int,
    keep: Callable[[tuple, RandomKey], PyTree] = lambda seen, key: seen,
) -> tuple[RolloutState, PyTree]:
    """Runs one unroll for each key, and returns what `keep` makes of the steps of each."""

    def step(rollout_state: RolloutState, key: RandomKey) -> tuple[RolloutState, tuple]:
        rollout_state = _restart(env, rollout_state)
        seen = _seen(rollout_state.episode)
        sample_keys = own_rows(jax.random.split(key, num_envs), num_envs)
        latent, extras, action = jax.vmap(policy.sample)(seen[0], sample_keys)
        episode, result = jax.vmap(env.step)(rollout_state.episode, jnp.tanh(action))

        def usable(before: Array, after: Array) -> Array:
            # A simulation that blew up ends its episode, and nothing may depend on the observation after it.
            return jnp.where(episode.done[:, None] & ~jnp.isfinite(after), before, after)

        seen_next = jax.tree.map(usable, seen, _seen(episode))
        rollout_state = dataclasses.replace(rollout_state, episode=episode)
        result = dataclasses.replace(result, terms={})  # nobody learns from them
        return rollout_state, (seen, latent, extras, action, result, seen_next)

    def unroll(rollout_state: RolloutState, key: RandomKey) -> tuple[RolloutState, tuple]:
        step_key, keep_key = jax.random.split(key)
        rollout_state, seen = jax.lax.scan(step, rollout_state, jax.random.split(step_key, unroll_length))
        return rollout_state, keep(seen, keep_key)

    return jax.lax.scan(unroll, rollout_state, keys)


def _seen(episode: EpisodeState) -> tuple[Array, Array | None]:
    """What the policy sees, and what critics see where that is something else."""
    return episode.observation, episode.critic_observation


def _restart(env: EpisodicEnv, rollout_state: RolloutState) -> RolloutState:
    """Begins the next episode of each environment whose last one is done."""
    done = rollout_state.episode.done

    def draw(carry: tuple[EpisodeState, RandomKeys]) -> tuple[EpisodeState, RandomKeys]:
        start, keys = carry
        now, later = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        return jax.vmap(restart)(jax.vmap(env.start)(now), start), optax.tree.where(start.done, later, keys)

    # A loop of at most one pass, not a branch: under vmap over seeds a branch would always be taken. The keys are
    # carried, because XLA moves everything that all passes have in common out of the loop.
    start, keys = jax.lax.while_loop(
        lambda carry: jnp.any(done & carry[0].done), draw, (rollout_state.start, rollout_state.keys)
    )
    begun = eqx.tree_at(lambda e: e.step_count, start, start.step_count + rollout_state.head_start)
    return RolloutState(
        jax.vmap(restart)(begun, rollout_state.episode),
        eqx.tree_at(lambda s: s.done, start, start.done | done),
        jnp.where(done, 0, rollout_state.head_start),
        keys,
    )


def collect_dataset(
    env: EpisodicEnv, policy: Policy, num_episodes: int, stride: int, unroll_length: int, key: RandomKey
) -> tuple[
    Float[Array, "kept episodes observation"],
    Float[Array, "kept episodes action"],
    Float[Array, "kept episodes latent"],
]:
    """Collects the dataset that a decoder is fitted to: one step in `stride` of whole fresh episodes.

    The step is drawn at random within each stride. An episode that terminates early is followed by another one, so all
    environments contribute equally many steps. Only the steps of one unroll are in memory at once.

    **Arguments:**

    - `env`: the environment.
    - `policy`: acts stochastically.
    - `num_episodes`: the number of parallel episodes.
    - `stride`: one step in this many is kept; an incomplete stride at the end of an episode is dropped.
    - `unroll_length`: the largest number of steps in memory at once. It is rounded down to whole strides that divide an
        episode.
    - `key`: decides latents, start states and which steps are kept.

    **Returns:**

    Observations, actions before `tanh`, and the latents that the decoder turned into these actions.
    """
    num_kept = env.num_steps // stride
    kept_at_once = largest_divisor(num_kept, max(1, unroll_length // stride))

    def keep(seen: tuple, key: RandomKey) -> tuple[Array, Array, Array]:
        (observation, _), latent, _, action, _, _ = seen
        drawn = jax.random.randint(key, (kept_at_once, 1, num_episodes, 1), 0, stride)
        chosen = jnp.moveaxis(own_rows(jnp.moveaxis(drawn, 2, 0), num_episodes), 0, 2)

        def of_each_stride(leaf: Float[Array, "time episodes size"]) -> Float[Array, "kept episodes size"]:
            by_stride = leaf.reshape(kept_at_once, stride, *leaf.shape[1:])
            return jnp.take_along_axis(by_stride, chosen, axis=1)[:, 0]

        return jax.tree.map(of_each_stride, (observation, action, latent))

    start_key, key = jax.random.split(key)
    keys = jax.random.split(key, num_kept // kept_at_once)
    rollout_state = RolloutState.empty(env, num_episodes, start_key)
    _, kept = _unroll(env, policy, rollout_state, num_episodes, keys, kept_at_once * stride, keep)
    kept = jax.tree.map(lambda leaf: leaf.reshape(num_kept, *leaf.shape[2:]), kept)
    return all_rows(kept, num_episodes, axis=1)
