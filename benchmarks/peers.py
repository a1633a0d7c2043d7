"""Peers beside us: the same task, networks, batches and epochs, in turns, each run in a process of its own.

For PPO, that of Brax and on request that of Rejax: the ratio of environment steps per second, compilation aside, and of
the time of the whole process. All three start an episode that is over again without a reset in every step. The standard
deviation of Rejax's policy does not depend on the observation, which is a little less work than ours and Brax's.

With `--public CHECKOUT`, the public GoRL code: the seconds of its whole pipeline beside those of `gorl train`, with all
that a user waits for: compilation, evaluations, files. Both train two stages of eight iterations and evaluate each of
them five times on 128 episodes; a refinement draws as many pairs and takes as many gradient steps. What is not alike:
the public code refines after each of the two stages, ours once, between them, as nothing comes after the last; the
public code also evaluates before each collection of pairs, ours the best policy at the end.
"""

import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer

import gorl

from . import _peer_public
from ._report import GORL, RESULTS, console, table, write

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
# The whole pipeline like that: what to set on the paper's preset. The public code collects 307,200 pairs in five
# iterations and holds out a tenth of them; both are left with 135 batches.
PIPELINE: dict[str, Any] = {f"learner.{name}": size for name, size in SETTINGS.items()} | {
    "stage_steps": (500_000, 500_000),
    "evaluation_interval": 122_880,
    "evaluation_episodes": 128,
    "decoder.width": 64,
    "decoder.depth": 4,
    "decoder.num_steps": 10,
    "refinement.num_episodes": 308,
    "refinement.num_validation_episodes": 31,
    "refinement.stride": 1,
    "refinement.num_noise_samples": 8,
    "refinement.batch_size": 2048,
    "refinement.num_epochs": 10,
}
# The rest is written into the public code.
RESIZABLE = (
    *(f"learner.{name}" for name in ("num_envs", "unroll_length", "num_unrolls", "num_minibatches", "num_epochs")),
    *("stage_steps", "evaluation_interval"),
    *(f"refinement.{name}" for name in ("num_episodes", "num_validation_episodes", "batch_size", "num_epochs")),
)
PEERS = {"brax": "benchmarks._peer_brax", "rejax": "benchmarks._peer_rejax"}
Measure = Callable[[], dict[str, Any]]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def timed_process(name: str, command: list[str], **options: Any) -> tuple[str, float]:
    """What a process printed, and its seconds."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    took = time.perf_counter() - began
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"{name} ended with exit code {done.returncode}; what it said is above.")
    return done.stdout, took


def run(module: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The rates of the iterations of a run, and the seconds of its process."""
    printed, took = timed_process(module, [sys.executable, "-m", module, json.dumps(settings)])
    return {"steps_per_second": json.loads(printed.splitlines()[-1])["steps_per_second"], "seconds": took}


def run_pipeline(task: str, values: dict[str, Any]) -> dict[str, Any]:
    """The seconds of `gorl train`, which finds nothing compiled before, and what its policy earns."""
    command = [*GORL, "--cache", "off", "train", task, "--scale", "paper", "--seeds", "1"]
    for name, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        command += ["--set", f"{name}={text}"]
    with tempfile.TemporaryDirectory() as directory:
        run = pathlib.Path(directory, "run")
        seconds = timed_process("gorl train", [*command, "--out", str(run)])[1]
        summary = json.loads((run / "summary.json").read_text())
        return {"seconds": seconds, "best_policy_return": summary["best_policy_return_mean"]}


def run_public_pipeline(code: _peer_public.PublicCode, config: gorl.Config) -> dict[str, Any]:
    """The seconds of the public code's pipeline, likewise."""
    with tempfile.TemporaryDirectory() as directory:
        command, options = code.process(pathlib.Path(directory), config)
        return {"seconds": timed_process(f"{code.checkout / _peer_public.PIPELINE}", command, **options)[1]}


def in_turns(path: pathlib.Path, content: dict[str, Any], runs: dict[str, Measure], repeats: int) -> dict[str, Any]:
    """What each run measured, one list for each figure, which is also left in a file with `content`."""
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in runs}
    for _ in range(repeats):
        for name, measure in runs.items():
            for figure, value in measure().items():
                found[name].setdefault(figure, []).append(value)
            # After each, so that a comparison cut short leaves what it had.
            write(path, content | {"runs": found, "finished": False})
    return found


def median_seconds(found: dict[str, Any]) -> dict[str, float]:
    """Of the processes of each."""
    return {name: statistics.median(figures["seconds"]) for name, figures in found.items()}


def compare_ppo(task: str, peer: str, iterations: int, repeats: int, sizes: dict[str, int], out: pathlib.Path) -> None:
    """Runs our PPO and a peer's in turns, and leaves and prints the ratios."""
    per_iteration = sizes["num_envs"] * sizes["unroll_length"] * sizes["num_unrolls"]
    settings = sizes | {"task": task, "iterations": iterations, "steps": per_iteration * iterations}
    content: dict[str, Any] = {"settings": settings, "peer_version": version(peer)}
    modules = {"gorl": "benchmarks._peer_gorl", peer: PEERS[peer]}
    runs: dict[str, Measure] = {name: lambda module=module: run(module, settings) for name, module in modules.items()}
    path = out / f"{peer}_{task}.json"
    found = in_turns(path, content, runs, repeats)
    # Brax compiles its first and its second: the types of what the first returns are not those that it was given.
    rates = {
        name: statistics.median(rate for rates in figures["steps_per_second"] for rate in rates[2:])
        for name, figures in found.items()
    }
    times = median_seconds(found)
    ratios = {"rate_ratio": rates["gorl"] / rates[peer], "time_ratio": times[peer] / times["gorl"]}
    write(path, content | {"runs": found, **ratios, "finished": True})
    table(
        f"PPO on {task}, {per_iteration:,} steps an iteration",
        {
            "": list(runs),
            "env steps/s": [f"{rates[name]:,.0f}" for name in runs],
            f"over {peer}": [f"{rates[name] / rates[peer]:.2f}" for name in runs],
            f"whole process, {iterations} iterations, s": [f"{times[name]:.0f}" for name in runs],
            "times faster": [f"{times[peer] / times[name]:.2f}" for name in runs],
        },
        left=("",),
    )
    console.print(f"raw: {path}")


def compare_pipelines(
    task: str, code: _peer_public.PublicCode, values: dict[str, Any], repeats: int, out: pathlib.Path
) -> None:
    """Runs `gorl train` and the public code's pipeline in turns, and leaves and prints the ratio."""
    config = gorl.replace(gorl.preset(task, "paper"), values)
    runs: dict[str, Measure] = {
        "gorl": lambda: run_pipeline(task, values),
        "public": lambda: run_public_pipeline(code, config),
    }
    content: dict[str, Any] = {
        "settings": values,
        "public_ppo": _peer_public.ppo_sizes(config),
        "public_arguments": _peer_public.arguments(config),
        "public_versions": code.versions,
    }
    path = out / f"public_{task}.json"
    found = in_turns(path, content, runs, repeats)
    times = median_seconds(found)
    content |= {"runs": found, "time_ratio": times["public"] / times["gorl"], "finished": True}
    write(path, content)
    refinements = {"gorl": config.num_stages - 1, "public": config.num_stages}
    table(
        f"The whole pipeline on {task}, {config.num_stages} stages",
        {
            "": list(runs),
            "refinements": [str(refinements[name]) for name in runs],
            "whole process, s": [f"{times[name]:.0f}" for name in runs],
            "times faster": [f"{times['public'] / times[name]:.2f}" for name in runs],
        },
        left=("",),
    )
    console.print("The public code also refines after the last stage, which ours does not.")
    console.print(f"raw: {path}")


def chosen_sizes(settings: list[str]) -> dict[str, int]:
    """The sizes for PPO, some of them set.

    **Raises:**

    `gorl.InputError` for what is no size.
    """
    sizes = dict(SETTINGS)
    for setting in settings:
        name, _, size = setting.partition("=")
        if name not in SETTINGS or not size.isdecimal():
            raise gorl.InputError(f"--set {setting}: give NAME=SIZE, NAME of {', '.join(SETTINGS)}.")
        sizes[name] = int(size)
    return sizes


def chosen_values(task: str, settings: list[str]) -> dict[str, Any]:
    """The values for the whole pipeline, some of them set.

    **Raises:**

    `gorl.InputError` for what the public code cannot be told, or a config cannot hold.
    """
    preset = gorl.preset(task, "paper")
    values = dict(PIPELINE)
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in RESIZABLE:
            raise gorl.InputError(f"--set {setting}: with --public give NAME=VALUE, NAME of {', '.join(RESIZABLE)}.")
        values[name] = gorl.internal.parse(preset, name, text)
    gorl.replace(preset, values)
    return values


def check_peers(peers: list[str]) -> None:
    """Checks that each is known and installed.

    **Raises:**

    `gorl.InputError`
    """
    for peer in peers:
        if peer not in PEERS:
            raise gorl.InputError(f"--peer {peer}: give one of {', '.join(PEERS)}.")
        if importlib.util.find_spec(peer) is None:
            raise gorl.InputError(f"{peer} is not installed: pip install {peer}.")


@app.command()
def main(
    task: Annotated[str, typer.Option(help="A task of MuJoCo Playground.")] = "CartpoleSwingup",
    peers: Annotated[
        list[str] | None, typer.Option("--peer", help="Whose PPO: brax or rejax; may be given several times.")
    ] = None,
    iterations: Annotated[int, typer.Option(help="Of each run of PPO; the first two are not counted in its rate.")] = 6,
    repeats: Annotated[int | None, typer.Option(help="Runs of each, in turns; by default 3, with --public 1.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=SIZE: num_envs=64, with --public learner.num_envs=64.")
    ] = None,
    public: Annotated[
        pathlib.Path | None, typer.Option(help="A checkout of the public GoRL code: compare whole pipelines.")
    ] = None,
    public_python: Annotated[
        str | None, typer.Option(help="The Python that runs it; by default the one that runs this.")
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="Where the results go.")] = RESULTS / "peers",
) -> None:
    """Runs GoRL and its peers in turns, and prints the ratios."""
    try:
        if iterations < 3 or (repeats is not None and repeats < 1):
            raise gorl.InputError("--iterations must be at least 3 and --repeats at least 1.")
        if public is not None and peers:
            raise gorl.InputError("--peer and --public are two comparisons: give one of them.")
        if public is None:
            peers = peers or ["brax"]
            check_peers(peers)
            sizes = chosen_sizes(settings or [])
            planned = [partial(compare_ppo, task, peer, iterations, repeats or 3, sizes, out) for peer in peers]
        else:
            values = chosen_values(task, settings or [])
            code = _peer_public.PublicCode.find(public, public_python)
            planned = [partial(compare_pipelines, task, code, values, repeats or 1, out)]
    except gorl.InputError as error:
        print(f"benchmarks.peers: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    for compare in planned:
        compare()


if __name__ == "__main__":
    app()
