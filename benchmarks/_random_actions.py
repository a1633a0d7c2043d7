"""Physics under random actions, which the benchmarks of it have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import gorl


def random_actions(
    episodes: gorl.Episodes, num_envs: int, num_steps: int
) -> Callable[[gorl.Episode, jax.Array], tuple[gorl.Episode, jax.Array]]:
    """A function that takes episodes under way and a key so many random actions on, and gives the mean rewards too."""

    def run(start: gorl.Episode, key: jax.Array) -> tuple[gorl.Episode, jax.Array]:
        def step(episode: gorl.Episode, key: jax.Array) -> tuple[gorl.Episode, jax.Array]:
            actions = jax.random.uniform(key, (num_envs, episodes.action_size), minval=-1, maxval=1)
            episode, outcome = jax.vmap(episodes.step)(episode, actions)
            return episode, jnp.mean(outcome.reward)

        return jax.lax.scan(step, start, jax.random.split(key, num_steps))

    return run
