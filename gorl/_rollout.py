"""Acting: experience to learn from, and actions to fit a decoder to."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._env import Episode, Episodes, restart
from ._learner import Experience
from ._policy import Policy
from ._types import RandomKey, RandomKeys


class Workers(eqx.Module):
    """Environments side by side that experience is gathered from."""

    episode: Episode  # where each of them stands
    start: Episode  # where the next episode of each starts; over where it has been used

    @staticmethod
    def idle(episodes: Episodes, num_envs: int) -> "Workers":
        """Workers with no episode running and no start state drawn: a rollout begins with both."""
        none = episodes.none(num_envs)
        return Workers(none, none)


def rollout(
    episodes: Episodes, policy: Policy, workers: Workers, num_unrolls: int, unroll_length: int, key: RandomKey
) -> tuple[Workers, Experience]:
    """Acts for `num_unrolls * unroll_length` steps in every environment.

    An episode that ends restarts from a start state that was drawn beforehand. If any was used, fresh ones are drawn as
    the next unroll begins. (At every step that would double the cost of the physics, or do much worse: a reset of
    CheetahRun takes 200 steps.)

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
        workers.episode.observation,
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
        observation = workers.episode.observation
        latent, extras, action = jax.vmap(policy.sample)(observation, jax.random.split(key, num_envs))
        episode, outcome = jax.vmap(episodes.step)(workers.episode, jnp.tanh(action))
        # A simulation that blew up ended its episode: what it led to is no observation, and nothing may depend on it.
        blew_up = episode.over[:, None] & ~jnp.isfinite(episode.observation)
        next_observation = jnp.where(blew_up, observation, episode.observation)
        workers = _restart(Workers(episode, workers.start))
        return workers, (observation, latent, extras, action, outcome, next_observation)

    def unroll(workers: Workers, key: RandomKey) -> tuple[Workers, tuple]:
        start_key, step_key, keep_key = jax.random.split(key, 3)

        def draw(carry: tuple[Episode, RandomKey]) -> tuple[Episode, RandomKey]:
            start, key = carry
            keys = jax.random.split(key, num_envs + 1)
            return jax.vmap(restart)(jax.vmap(episodes.start)(keys[1:]), start), keys[0]

        # A loop of one pass at most rather than a branch: under vmap over seeds a branch would always be taken. It has
        # a new key for another pass because XLA would do what all passes have in common, here everything, before.
        start, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[0].over), draw, (workers.start, start_key))
        workers = _restart(Workers(workers.episode, start))
        workers, seen = jax.lax.scan(step, workers, jax.random.split(step_key, unroll_length))
        return workers, keep(seen, keep_key)

    return jax.lax.scan(unroll, workers, keys)


def _restart(workers: Workers) -> Workers:
    """Goes on with the next episode wherever one is over."""
    episode = jax.vmap(restart)(workers.start, workers.episode)
    used = workers.start.over | workers.episode.over
    return Workers(
        eqx.tree_at(lambda e: e.over, episode, jnp.zeros_like(used)), eqx.tree_at(lambda w: w.over, workers.start, used)
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
    - `unroll_length`: steps after which start states that were used are replaced by fresh ones; fewer if so many are
        no whole strides, or do not divide those of an episode.
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
