"""Acting: experience to learn from, and actions to fit a decoder to."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ._env import Episode, Episodes, restart
from ._learner import Experience
from ._policy import Policy
from ._types import RandomKey, RandomKeys


class Workers(eqx.Module):
    """Environments side by side that experience is gathered from."""

    episode: Episode  # where each of them stands
    start: Episode  # where the next episode of each starts; over where it has been used
    head_start: Int[Array, " envs"]  # steps of its time limit that the next episode of each begins with

    @staticmethod
    def idle(episodes: Episodes, num_envs: int) -> "Workers":
        """Workers with no episode running and no start state drawn: their first step begins with both."""
        none = episodes.none(num_envs)
        return Workers(none, none, jnp.zeros(num_envs, jnp.int32))

    @staticmethod
    def staggered(episodes: Episodes, num_envs: int, key: RandomKey) -> "Workers":
        """Idle workers that each begin with a random part of their first time limit over."""
        head_start = jax.random.randint(key, (num_envs,), 0, episodes.episode_length)
        return eqx.tree_at(lambda w: w.head_start, Workers.idle(episodes, num_envs), head_start)


def rollout(
    episodes: Episodes, policy: Policy, workers: Workers, num_unrolls: int, unroll_length: int, key: RandomKey
) -> tuple[Workers, Experience]:
    """Acts for `num_unrolls * unroll_length` steps in every environment.

    An episode that is over is followed by another, from a start state that was drawn beforehand. When a worker needs
    one and has used up its own, fresh ones are drawn for all that have. (A draw at every step would double the cost of
    the physics, or do much worse: a reset of CheetahRun takes 200 steps.)

    **Arguments:**

    - `episodes`: the environment.
    - `policy`: acts stochastically.
    - `workers`: where the environments stand.
    - `num_unrolls`, `unroll_length`: how long.
    - `key`: decides latents and start states.

    **Returns:**

    Where the environments stand now, and what happened.
    """
    workers, seen = _unroll(episodes, policy, workers, jax.random.split(key, num_unrolls), unroll_length)
    seen = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)
    observation, latent, extras, action, outcome, next_observation = seen
    return workers, Experience(
        observation,
        latent,
        extras,
        action,
        outcome.reward,
        outcome.terminated,
        outcome.truncated,
        next_observation,
    )


def _unroll(
    episodes: Episodes,
    policy: Policy,
    workers: Workers,
    keys: RandomKeys,
    unroll_length: int,
    keep: Callable[[tuple, RandomKey], PyTree] = lambda seen, key: seen,
) -> tuple[Workers, PyTree]:
    """An unroll for each key; `keep` says what is left of each, of the steps that it has in front."""
    num_envs = workers.episode.over.shape[0]

    def step(workers: Workers, key: RandomKey) -> tuple[Workers, tuple]:
        start_key, policy_key = jax.random.split(key)
        workers = _restart(episodes, workers, start_key)
        observation = workers.episode.observation
        latent, extras, action = jax.vmap(policy.sample)(observation, jax.random.split(policy_key, num_envs))
        episode, outcome = jax.vmap(episodes.step)(workers.episode, jnp.tanh(action))
        # A simulation that blew up ended its episode: what it led to is no observation, and nothing may depend on it.
        blew_up = episode.over[:, None] & ~jnp.isfinite(episode.observation)
        next_observation = jnp.where(blew_up, observation, episode.observation)
        workers = Workers(episode, workers.start, workers.head_start)
        return workers, (observation, latent, extras, action, outcome, next_observation)

    def unroll(workers: Workers, key: RandomKey) -> tuple[Workers, tuple]:
        step_key, keep_key = jax.random.split(key)
        workers, seen = jax.lax.scan(step, workers, jax.random.split(step_key, unroll_length))
        return workers, keep(seen, keep_key)

    return jax.lax.scan(unroll, workers, keys)


def _restart(episodes: Episodes, workers: Workers, key: RandomKey) -> Workers:
    """Begins the next episode of each worker whose last one is over."""
    over = workers.episode.over

    def draw(carry: tuple[Episode, RandomKey]) -> tuple[Episode, RandomKey]:
        start, key = carry
        keys = jax.random.split(key, over.shape[0] + 1)
        return jax.vmap(restart)(jax.vmap(episodes.start)(keys[1:]), start), keys[0]

    # A loop of one pass at most rather than a branch: under vmap over seeds a branch would always be taken. It has
    # a new key for another pass because XLA would do what all passes have in common, here everything, before.
    start, _ = jax.lax.while_loop(lambda carry: jnp.any(over & carry[0].over), draw, (workers.start, key))
    begun = eqx.tree_at(lambda e: e.elapsed, start, start.elapsed + workers.head_start)
    return Workers(
        jax.vmap(restart)(begun, workers.episode),
        eqx.tree_at(lambda s: s.over, start, start.over | over),
        jnp.where(over, 0, workers.head_start),
    )


def demonstrate(
    episodes: Episodes, policy: Policy, num_episodes: int, stride: int, unroll_length: int, key: RandomKey
) -> tuple[
    Float[Array, "kept episodes observation"],
    Float[Array, "kept episodes action"],
    Float[Array, "kept episodes latent"],
]:
    """What a policy does, for a decoder to imitate: whole fresh episodes, of which one step in `stride` is kept.

    Within each run of `stride` steps the one that is kept is drawn at random. An episode that terminates early is
    followed by another, so that every environment contributes equally many pairs. Of steps that are not kept there are
    never more in memory than those of one unroll.

    **Arguments:**

    - `episodes`: the environment.
    - `policy`: acts stochastically.
    - `num_episodes`: how many episodes, side by side.
    - `stride`: keep one step in this many; an incomplete stride at the end of an episode is dropped.
    - `unroll_length`: steps that are in memory at once; fewer if so many are no whole strides, or do not divide those
        of an episode.
    - `key`: decides latents, start states and which steps are kept.

    **Returns:**

    Observations, the actions taken there before `tanh`, and the latents that the decoder made them of.
    """
    num_kept = episodes.num_steps // stride
    kept_at_once = next(count for count in range(max(1, unroll_length // stride), 0, -1) if num_kept % count == 0)

    def keep(seen: tuple, key: RandomKey) -> tuple[Array, Array, Array]:
        observation, latent, _, action, _, _ = seen
        chosen = jax.random.randint(key, (kept_at_once, 1, num_episodes, 1), 0, stride)

        def of_each_stride(leaf: Float[Array, "time episodes size"]) -> Float[Array, "kept episodes size"]:
            by_stride = leaf.reshape(kept_at_once, stride, *leaf.shape[1:])
            return jnp.take_along_axis(by_stride, chosen, axis=1)[:, 0]

        return jax.tree.map(of_each_stride, (observation, action, latent))

    keys = jax.random.split(key, num_kept // kept_at_once)
    workers = Workers.idle(episodes, num_episodes)
    _, kept = _unroll(episodes, policy, workers, keys, kept_at_once * stride, keep)
    return jax.tree.map(lambda leaf: leaf.reshape(num_kept, *leaf.shape[2:]), kept)
