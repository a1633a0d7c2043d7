"""Physics under random actions, which the benchmarks of it have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import gorl


def random_actions(
    env: gorl.EpisodicEnv, num_envs: int, num_steps: int
) -> Callable[[gorl.EpisodeState, jax.Array], tuple[gorl.EpisodeState, jax.Array]]:
    """A function that takes episodes under way and a key so many random actions on, and gives the mean rewards too."""

    def run(start: gorl.EpisodeState, key: jax.Array) -> tuple[gorl.EpisodeState, jax.Array]:
        def step(episode: gorl.EpisodeState, key: jax.Array) -> tuple[gorl.EpisodeState, jax.Array]:
            actions = jax.random.uniform(key, (num_envs, env.action_size), minval=-1, maxval=1)
            episode, result = jax.vmap(env.step)(episode, actions)
            return episode, jnp.mean(result.reward)

        return jax.lax.scan(step, start, jax.random.split(key, num_steps))

    return run
