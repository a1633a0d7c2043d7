"""Rejax's PPO in a process of its own: prints what it took as JSON, as [`_peer_brax`][] does."""

import json
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import rejax  # pyright: ignore[reportMissingImports]
from flax import linen
from gymnax.environments import spaces  # pyright: ignore[reportMissingImports]
from mujoco_playground import registry
from rejax.networks import VNetwork  # pyright: ignore[reportMissingImports]


class Limit(NamedTuple):
    """What Rejax wants to know of an environment's parameters."""

    max_steps_in_episode: int = 1000


class Episode(NamedTuple):
    """Where an episode stands, and where it began."""

    state: Any
    first: Any
    steps: jax.Array


class Task:
    """A task of MuJoCo Playground in the shape that Rejax trains on.

    An episode that is over begins again where it began, as with Brax's PPO: what Rejax's own adapters do, a reset in
    every step, would count against it.
    """

    default_params = Limit()

    def __init__(self, name: str) -> None:
        self.environment: Any = registry.load(name, config_overrides={"impl": "jax"})

    def __deepcopy__(self, _: dict[int, Any]) -> "Task":
        return self  # Rejax copies what it is given, and a MuJoCo model is never changed

    def reset(self, key: jax.Array, _: Limit) -> tuple[jax.Array, Episode]:
        first = self.environment.reset(key)
        return first.obs, Episode(first, first, jnp.zeros((), jnp.int32))

    def step(
        self, _: jax.Array, episode: Episode, action: jax.Array, limit: Limit
    ) -> tuple[jax.Array, Episode, jax.Array, jax.Array, dict[str, Any]]:
        after = self.environment.step(episode.state, action)
        steps = episode.steps + 1
        is_over = after.done.astype(bool) | (steps >= limit.max_steps_in_episode)
        state = jax.tree.map(lambda first, here: jnp.where(is_over, first, here), episode.first, after)
        return state.obs, Episode(state, episode.first, jnp.where(is_over, 0, steps)), after.reward, is_over, {}

    def action_space(self, _: Limit) -> Any:
        return spaces.Box(-1.0, 1.0, (self.environment.action_size,))

    def observation_space(self, _: Limit) -> Any:
        return spaces.Box(-jnp.inf, jnp.inf, (self.environment.observation_size,))


def main() -> None:
    """Trains, and prints the rate of each iteration."""
    settings = json.loads(sys.argv[1])
    steps_per_env = settings["unroll_length"] * settings["num_unrolls"]
    algorithm = rejax.PPO.create(
        env=Task(settings["task"]),
        agent_kwargs={"hidden_layer_sizes": (settings["policy_width"],) * settings["policy_depth"]},
        num_envs=settings["num_envs"],
        num_steps=steps_per_env,
        num_minibatches=settings["num_minibatches"],
        num_epochs=settings["num_epochs"],
        learning_rate=1e-3,
        ent_coef=1e-2,
        gamma=0.995,
        clip_eps=0.2,
        normalize_observations=True,
    )
    # It makes both networks of one size.
    critic = VNetwork((settings["value_width"],) * settings["value_depth"], linen.swish)
    algorithm = algorithm.replace(critic=critic)
    state = jax.jit(algorithm.init_state)(jax.random.PRNGKey(0))
    iterate = jax.jit(algorithm.train_iteration)
    rates = []
    for _ in range(settings["iterations"]):
        began = time.perf_counter()
        state = jax.block_until_ready(iterate(state))
        rates.append(settings["num_envs"] * steps_per_env / (time.perf_counter() - began))
    print(json.dumps({"steps_per_second": rates}))


if __name__ == "__main__":
    main()
