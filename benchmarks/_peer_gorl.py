"""GoRL's PPO with a peer's settings: `python -m benchmarks._peer_gorl SETTINGS` prints the rates as JSON."""

import json
import sys

import jax

import gorl

from ._measure import timed


def main() -> None:
    """Trains, and prints the rate of each iteration."""
    settings = json.loads(sys.argv[1])
    sizes = {name: size for name, size in settings.items() if name not in ("task", "iterations", "steps")}
    config = gorl.Config(
        env=gorl.EnvConfig(settings["task"]),
        learner=gorl.PPO(on_actions=True, **sizes),
        decoder=gorl.Identity(),
        stage_steps=(settings["steps"],),
        evaluation_interval=settings["steps"],
    )
    rates = []
    for step, _, seconds in timed(config, jax.random.key(0)):
        if step.phase == gorl.Phase.LEARN:
            rates.append(config.steps_per_iteration / seconds)
            if len(rates) == settings["iterations"]:
                break  # only evaluations follow, which the peers do not make
    print(json.dumps({"steps_per_second": rates}))


if __name__ == "__main__":
    main()
