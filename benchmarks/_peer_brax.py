"""Brax's own PPO: `python -m benchmarks._peer_brax SETTINGS` prints the rates as JSON."""

import functools
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from brax.training.agents.ppo import networks, train
from mujoco_playground import registry, wrapper


def main() -> None:
    """Trains, and prints the rate of each iteration."""
    settings = json.loads(sys.argv[1])
    # Brax's trainers call it, and newer versions of JAX do not have it. The comparison is on one device.
    if not hasattr(jax, "device_put_replicated"):
        jax.device_put_replicated = lambda tree, _: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
    rates: list[float] = []

    def progress(_: int, metrics: Mapping[str, Any]) -> None:
        if "training/sps" in metrics:
            rates.append(float(metrics["training/sps"]))

    environment: Any = registry.load(settings["task"], config_overrides={"impl": "jax"})
    hidden = {
        f"{name}_hidden_layer_sizes": (settings[f"{name}_width"],) * settings[f"{name}_depth"]
        for name in ("policy", "value")
    }
    train.train(
        environment=environment,
        num_timesteps=settings["steps"],
        num_envs=settings["num_envs"],
        episode_length=1000,
        wrap_env_fn=wrapper.wrap_for_brax_training,
        learning_rate=1e-3,
        entropy_cost=1e-2,
        discounting=0.995,
        unroll_length=settings["unroll_length"],
        batch_size=settings["num_envs"] * settings["num_unrolls"] // settings["num_minibatches"],
        num_minibatches=settings["num_minibatches"],
        num_updates_per_batch=settings["num_epochs"],
        normalize_observations=True,
        reward_scaling=10.0,
        clipping_epsilon=0.2,
        network_factory=functools.partial(networks.make_ppo_networks, **hidden),
        num_evals=settings["iterations"] + 1,
        run_evals=False,
        progress_fn=progress,
    )
    print(json.dumps({"steps_per_second": rates}))


if __name__ == "__main__":
    main()
