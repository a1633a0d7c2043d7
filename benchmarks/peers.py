"""GoRL's PPO beside Brax's: the same task, networks, batches and epochs, in turns, each run in a process of its own.

Compared are the environment steps per second without compilation, and the time of the whole process. Both start an
ended episode again from its first state, without a reset in every step. Brax's is on MJX, ours on what GoRL chooses.
"""

import json
import pathlib
import statistics
import sys
from functools import partial
from typing import Annotated, Any

import typer

import gorl

from ._measure import in_turns, timed_process
from ._report import RESULTS, Out, Repeats, Settings, answer, benchmark, parse_settings, table, write

# What the public GoRL code trains CartpoleSwingup with, at a size for two cores: changes of the paper's preset.
SIZES: dict[str, Any] = {
    "learner.num_envs": 256,
    "learner.unroll_length": 30,
    "learner.num_unrolls": 8,
    "learner.num_minibatches": 8,
    "learner.num_epochs": 4,
    "learner.policy_width": 32,
    "learner.policy_depth": 4,
    "learner.value_width": 256,
    "learner.value_depth": 5,
}
NAMES = ("gorl", "brax")
Run = dict[str, Any]
app = benchmark("peers")


def run_ppo(name: str, settings: dict[str, Any]) -> Run:
    """The rate of each iteration of a run of PPO, and the seconds of its process."""
    printed, took = timed_process(sys.executable, "-m", f"benchmarks._peer_{name}", json.dumps(settings))
    return {"steps_per_second": json.loads(printed.splitlines()[-1])["steps_per_second"], "seconds": took}


def compare(settings: dict[str, Any], repeats: int, path: pathlib.Path) -> None:
    """Runs both in turns, and leaves and prints the ratios."""

    def leave(found: dict[str, list[Run]], **more: Any) -> None:
        runs = {
            name: {key: [run[key] for run in of_name] for key in ("steps_per_second", "seconds")}
            for name, of_name in found.items()
        }
        write(path, {"settings": settings, "repeats": repeats, "runs": runs, **more, "finished": bool(more)})

    found = in_turns({name: partial(run_ppo, name, settings) for name in NAMES}, repeats, leave)
    seconds = {name: statistics.median(run["seconds"] for run in found[name]) for name in NAMES}
    # Brax compiles in its first iteration and in its second, which gets other types than the first.
    rates = {
        name: statistics.median(rate for run in found[name] for rate in run["steps_per_second"][2:]) for name in NAMES
    }
    ratios = {"rate_ratio": rates["gorl"] / rates["brax"], "time_ratio": seconds["brax"] / seconds["gorl"]}
    leave(found, **ratios)
    rows = [{"": name, "env steps/s": rates[name], "whole process, s": seconds[name]} for name in NAMES]
    table(f"PPO on {settings['task']}, {settings['iterations']} iterations, medians of {repeats}", rows)
    table("GoRL over Brax in steps per second, Brax over GoRL in seconds", [ratios])


@app.command()
def main(
    task: Annotated[str, typer.Option(help="A task of MuJoCo Playground.")] = "CartpoleSwingup",
    iterations: Annotated[int, typer.Option(min=3, help="Of each run; the rate leaves out the first two.")] = 6,
    repeats: Repeats = 3,
    settings: Settings = None,
    out: Out = RESULTS / "peers",
) -> None:
    """Runs both in turns, and prints the ratios."""
    preset = gorl.preset(task, "paper")
    values = SIZES | parse_settings(preset, settings, SIZES)
    config = gorl.replace(preset, {**values, "env.implementation": "jax"})  # refuses what does not fit, and other tasks
    sizes = {name.removeprefix("learner."): value for name, value in values.items()}
    sizes |= {"task": task, "iterations": iterations, "steps": iterations * config.steps_per_iteration}
    compare(sizes, repeats, out / f"brax_{task}.json")


if __name__ == "__main__":
    answer(app)
