"""Peers beside us: the same task, networks, batches and epochs, in turns, each run in a process of its own.

For Brax's PPO: the ratio of environment steps per second, compilation aside, and of the time of the whole process.
"""

import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Annotated, Any

import typer

from ._report import RESULTS, console, table, write

# What the public GoRL code trains CartpoleSwingup with, at a size that two cores can take.
SETTINGS = {
    "num_envs": 256,
    "unroll_length": 30,
    "num_unrolls": 8,
    "num_minibatches": 8,
    "num_epochs": 4,
    "policy_width": 32,
    "policy_depth": 4,
    "value_width": 256,
    "value_depth": 5,
}
PEERS = {"gorl": "benchmarks._peer_gorl", "brax": "benchmarks._peer_brax"}


def run(module: str, settings: dict[str, Any]) -> tuple[list[float], float]:
    """The rates of the iterations of a run, and the seconds of its process."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{module} ended with exit code {done.returncode}; what it said is above.")
    return json.loads(done.stdout.splitlines()[-1])["steps_per_second"], took


def main(
    task: Annotated[str, typer.Option(help="A task of MuJoCo Playground.")] = "CartpoleSwingup",
    iterations: Annotated[int, typer.Option(help="Of each run; the first two are not counted in its rate.")] = 6,
    repeats: Annotated[int, typer.Option(help="Runs of each, in turns.")] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set", help="NAME=SIZE, such as num_envs=64.")] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Where the results go.")] = RESULTS / "peers",
) -> None:
    """Runs GoRL's PPO and Brax's in turns, and prints the ratios."""
    if importlib.util.find_spec("brax") is None:
        print("benchmarks.peers: brax is not installed: pip install brax.", file=sys.stderr)
        raise typer.Exit(2)
    if iterations < 3 or repeats < 1:
        print("benchmarks.peers: --iterations must be at least 3 and --repeats at least 1.", file=sys.stderr)
        raise typer.Exit(2)
    chosen: dict[str, Any] = dict(SETTINGS)
    for setting in settings or []:
        name, _, size = setting.partition("=")
        if name not in SETTINGS or not size.isdecimal():
            print(f"benchmarks.peers: --set {setting}: give NAME=SIZE, NAME of {', '.join(SETTINGS)}.", file=sys.stderr)
            raise typer.Exit(2)
        chosen[name] = int(size)
    per_iteration = chosen["num_envs"] * chosen["unroll_length"] * chosen["num_unrolls"]
    chosen |= {"task": task, "iterations": iterations, "steps": per_iteration * iterations}
    found: dict[str, dict[str, list[Any]]] = {peer: {"steps_per_second": [], "seconds": []} for peer in PEERS}
    content: dict[str, Any] = {"settings": chosen, "runs": found, "finished": False}
    for _ in range(repeats):
        for peer, module in PEERS.items():
            rates, took = run(module, chosen)
            found[peer]["steps_per_second"].append(rates)
            found[peer]["seconds"].append(took)
            write(out / f"brax_{task}.json", content)  # after each, so that a run cut short leaves what it had
    # Brax compiles its first and its second: the types of what the first returns are not those that it was given.
    rates = {
        peer: statistics.median(rate for one in of_peer["steps_per_second"] for rate in one[2:])
        for peer, of_peer in found.items()
    }
    times = {peer: statistics.median(of_peer["seconds"]) for peer, of_peer in found.items()}
    content |= {"rate_ratio": rates["gorl"] / rates["brax"], "time_ratio": times["brax"] / times["gorl"]}
    write(out / f"brax_{task}.json", content | {"finished": True})
    table(
        f"PPO on {task}, {per_iteration:,} steps an iteration",
        {
            "": list(PEERS),
            "env steps/s": [f"{rates[peer]:,.0f}" for peer in PEERS],
            "over brax": [f"{rates[peer] / rates['brax']:.2f}" for peer in PEERS],
            f"whole process, {iterations} iterations, s": [f"{times[peer]:.0f}" for peer in PEERS],
            "times faster": [f"{times['brax'] / times[peer]:.2f}" for peer in PEERS],
        },
        left=("",),
    )
    console.print(f"raw: {out / f'brax_{task}.json'}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
