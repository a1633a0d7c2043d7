"""Acting: experience to learn from, and actions to fit a decoder to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._env import Episode, Episodes, restart
from ._learner import Experience
from ._policy import Policy
from ._types import RandomKey


def rollout(
    episodes: Episodes, policy: Policy, episode: Episode, num_unrolls: int, unroll_length: int, key: RandomKey
) -> tuple[Episode, Experience]:
    """Acts for `num_unrolls * unroll_length` steps in every environment.

    Each unroll draws a fresh start state for every environment, which an episode that ends during it restarts from.
    (Drawing one at every step instead would double the cost of the physics.)

    **Arguments:**

    - `episodes`: the environment.
    - `policy`: acts stochastically.
    - `episode`: where the environments stand, batched; those that are over are started first.
    - `num_unrolls`, `unroll_length`: how long.
    - `key`: decides latents and start states.

    **Returns:**

    Where the environments stand now, and what happened.
    """
    num_envs = episode.over.shape[0]

    def step(carry: tuple[Episode, Episode], key: RandomKey) -> tuple[tuple[Episode, Episode], tuple]:
        episode, start = carry
        observation = episode.observation
        latent, extras, action = jax.vmap(policy.sample)(observation, jax.random.split(key, num_envs))
        episode, outcome = jax.vmap(episodes.step)(episode, jnp.tanh(action))
        # A simulation that blew up ended its episode: what it led to is no observation, and nothing may depend on it.
        blew_up = episode.over[:, None] & ~jnp.isfinite(episode.observation)
        next_observation = jnp.where(blew_up, observation, episode.observation)
        episode = jax.vmap(restart)(start, episode)
        return (episode, start), (observation, latent, extras, action, outcome, next_observation)

    def unroll(episode: Episode, key: RandomKey) -> tuple[Episode, tuple]:
        start_key, step_key = jax.random.split(key)
        start = jax.vmap(episodes.start)(jax.random.split(start_key, num_envs))
        carry = (jax.vmap(restart)(start, episode), start)
        (episode, _), seen = jax.lax.scan(step, carry, jax.random.split(step_key, unroll_length))
        return episode, seen

    episode, seen = jax.lax.scan(unroll, episode, jax.random.split(key, num_unrolls))
    seen = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)
    observation, latent, extras, action, outcome, next_observation = seen
    return episode, Experience(
        observation,
        latent,
        extras,
        action,
        outcome.reward,
        outcome.terminated,
        outcome.truncated,
        next_observation,
        episode.observation,
    )


def demonstrate(
    episodes: Episodes, policy: Policy, num_episodes: int, stride: int, unroll_length: int, key: RandomKey
) -> tuple[
    Float[Array, "episodes kept observation"],
    Float[Array, "episodes kept action"],
    Float[Array, "episodes kept latent"],
]:
    """What a policy does, for a decoder to imitate: whole fresh episodes, of which one step in `stride` is kept.

    Within each run of `stride` steps the one that is kept is drawn at random. An episode that terminates early is
    followed by another, so that every environment contributes equally many pairs.

    **Arguments:**

    - `episodes`: the environment.
    - `policy`: acts stochastically.
    - `num_episodes`: how many episodes, side by side.
    - `stride`: keep one step in this many; an incomplete stride at the end of an episode is dropped.
    - `unroll_length`: steps between two draws of fresh start states.
    - `key`: decides latents, start states and which steps are kept.

    **Returns:**

    Observations, the actions taken there before `tanh`, and the latents that the decoder made them of.
    """
    rollout_key, choice_key = jax.random.split(key)
    num_unrolls = -(-episodes.num_steps // unroll_length)
    _, experience = rollout(episodes, policy, episodes.none(num_episodes), num_unrolls, unroll_length, rollout_key)
    first = stride * jnp.arange(episodes.num_steps // stride)
    chosen = first + jax.random.randint(choice_key, (num_episodes, first.size), 0, stride)
    environment = jnp.arange(num_episodes)[:, None]
    seen = (experience.observation, experience.action, experience.latent)
    return jax.tree.map(lambda leaf: leaf[chosen, environment], seen)
