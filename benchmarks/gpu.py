"""What a GPU makes of it, in one command of under nine minutes.

Environment steps a second of both physics, with random actions; how much seeds side by side save; and how long each
kind of chunk of the paper's schedule takes, from which follow the hours of the whole. The file of results is written
again after each measurement, so that a run that is cut short leaves what it has measured.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import typer

import gorl

from ._random_actions import random_actions
from ._report import RESULTS, console, machine, once, table, timed, write

COMPILING = "compile and evaluate"
FIRST, DECODED, EVALUATION, REFINEMENT = "learn, first stage", "learn, through a decoder", "evaluate", "refine"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    **Arguments:**

    - `tasks`, `implementations`: whose physics, and by what.
    - `num_envs`, `num_steps`: environments side by side, and steps of each in one measurement.
    - `seeds`: numbers of seeds, of which the first is what the others are compared with.
    - `chunks`: learning chunks that are timed for each number of seeds.
    - `seeds_config`: what the seeds train.
    - `stage_config`: the run whose chunks are timed and whose hours are projected.
    - `stage_chunks`: the most learning chunks of each stage; time allowing.
    """

    tasks: tuple[str, ...]
    implementations: tuple[str, ...]
    num_envs: int
    num_steps: int
    seeds: tuple[int, ...]
    chunks: int
    seeds_config: gorl.Config
    stage_config: gorl.Config
    stage_chunks: int


def full_plan(implementation: str | None) -> Plan:
    """What is measured on a GPU, with the physics that training takes."""
    physics = {"env.implementation": implementation}
    # A whole evaluation takes as many steps one after the other as an episode: no longer than those of training.
    short = {"env.episode_length": 200, "evaluation_episodes": 16}
    seeds_config = gorl.reschedule(gorl.preset("PointMass"), num_stages=1)
    return Plan(
        tasks=("FingerSpin", "CheetahRun"),
        implementations=("warp", "jax"),
        num_envs=2048,
        num_steps=100,
        seeds=(1, 2, 4, 8, 16),
        chunks=10,
        seeds_config=gorl.replace(seeds_config, {**short, **physics}),
        stage_config=gorl.replace(gorl.preset("FingerSpin", "paper"), physics),
        stage_chunks=1000,
    )


def smoke_plan() -> Plan:
    """The same on a CPU at sizes that only show that it runs."""
    tiny = {
        "env.episode_length": 20,
        "learner.num_envs": 8,
        "learner.unroll_length": 5,
        "learner.num_unrolls": 1,
        "learner.num_minibatches": 2,
        "learner.num_epochs": 2,
        "learner.policy_width": 8,
        "learner.policy_depth": 1,
        "learner.value_width": 8,
        "learner.value_depth": 1,
        "decoder.width": 8,
        "decoder.depth": 1,
        "refinement.num_episodes": 8,
        "refinement.num_validation_episodes": 2,
        "refinement.batch_size": 16,
        "refinement.num_epochs": 2,
        "stage_steps": (400, 400),
        "evaluation_interval": 200,
        "evaluation_episodes": 4,
    }
    config = gorl.replace(gorl.preset("MultiGoal", "paper"), tiny)
    return Plan(
        tasks=("PointMass",),
        implementations=("jax",),
        num_envs=16,
        num_steps=5,
        seeds=(1, 2),
        chunks=3,
        seeds_config=gorl.reschedule(config, num_stages=1),
        stage_config=config,
        stage_chunks=3,
    )


class Report:
    """What has been measured so far, on disk after each measurement, and how much time is left.

    **Arguments:**

    - `path`: where the figures go.
    - `minutes`: how long the whole may take.
    - `head`: what the file says besides the figures.
    """

    def __init__(self, path: pathlib.Path, minutes: float, head: dict[str, Any]):
        self.path, self.seconds, self.began = path, 60 * minutes, time.monotonic()
        empty = {"physics": [], "seeds": [], "stage": [], "projection": None, "notes": []}
        self.content: dict[str, Any] = {**head, "minutes": minutes, "finished": False, **empty}
        self.save()

    def save(self) -> None:
        """Leaves what there is."""
        self.content["elapsed_seconds"] = time.monotonic() - self.began
        write(self.path, self.content)

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Takes a measurement down."""
        self.content[part].append(row)
        self.save()
        single = {name: figure for name, figure in row.items() if not isinstance(figure, list)}
        figures = (f"{figure:.4g}" if isinstance(figure, float) else str(figure) for figure in single.values())
        told = (f"{name} {figure}" for name, figure in zip(single, figures, strict=True))
        console.print(f"{part}: {', '.join(told)}")

    def note(self, sentence: str) -> None:
        """Takes down what was not measured, and why."""
        self.content["notes"].append(sentence)
        self.save()
        console.print(sentence)

    def left(self, share: float = 1.0) -> float:
        """The seconds that are left of this share of the time."""
        return share * self.seconds - (time.monotonic() - self.began)

    def fits(self, what: str, expected: float, share: float = 1.0) -> bool:
        """Whether a measurement that may take so many seconds ends within a share of the time; says so if not."""
        if expected <= self.left(share):
            return True
        self.note(
            f"{what} was left out: it may take {expected:.0f} s, and {max(0.0, self.left(share)):.0f} s were left."
        )
        return False

    def attempt(self, what: str, part: str, measure: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Takes down a measurement, or why it failed."""
        try:
            self.add(part, measure(*arguments))
        # Drivers, compilers and missing packages fail in their own ways, and none may take the other figures along.
        except Exception as error:
            self.failed(what, error)

    def failed(self, what: str, error: Exception) -> None:
        """Takes down why something failed."""
        self.note(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")


def throughput(task: str, implementation: str, num_envs: int, num_steps: int) -> dict[str, Any]:
    """Environment steps a second under random actions, each episode from the same start again."""
    env = gorl.load_environment(gorl.EnvConfig(task, implementation=implementation))
    start_key, action_key = jax.random.split(jax.random.key(0))

    run = jax.jit(random_actions(env, num_envs, num_steps))
    began = time.perf_counter()
    start = jax.jit(jax.vmap(env.start))(jax.random.split(start_key, num_envs))
    last, rewards = jax.block_until_ready(run(start, action_key))
    first = time.perf_counter() - began
    times = [once(run, start, action_key) for _ in range(3)]
    return {
        "task": task,
        "implementation": implementation,
        "envs": num_envs,
        "steps_per_second": num_envs * num_steps / statistics.median(times),
        "seconds": times,
        "seconds_to_start": first,
        "finite": bool(jnp.all(jnp.isfinite(rewards)) & jnp.all(jnp.isfinite(last.observation))),
    }


def measure_physics(report: Report, plan: Plan, share: float) -> None:
    """Both physics on each task, one after the other."""
    expected = 30.0 if jax.default_backend() != "cpu" else 0.0
    for task in plan.tasks:
        for implementation in plan.implementations:
            what = f"the physics of {task} by {implementation}"
            if not report.fits(what, expected, share):
                continue
            began = time.monotonic()
            report.attempt(what, "physics", throughput, task, implementation, plan.num_envs, plan.num_steps)
            expected = max(expected, time.monotonic() - began)


def learning_seconds(config: gorl.Config, seeds: int, chunks: int) -> tuple[list[float], float]:
    """The seconds of learning chunks over several seeds after the first, and those until the first has begun."""
    steps = config.steps_per_iteration * (chunks + 1)
    config = gorl.replace(config, {"stage_steps": (steps,), "evaluation_interval": steps})
    times, before = [], 0.0
    for step, _, seconds in timed(config, jax.random.split(jax.random.key(0), seeds)):
        if step.phase == gorl.Phase.LEARN:
            times.append(seconds)
        else:
            before += seconds
        if len(times) > chunks:
            break
    return times[1:], before


def measure_seeds(report: Report, plan: Plan, share: float) -> None:
    """Learning over more and more seeds in one call, as a ratio to so many calls of one seed."""
    expected = 30.0 if jax.default_backend() != "cpu" else 0.0
    for seeds in plan.seeds:
        what = f"learning of {seeds} seeds"
        if not report.fits(what, expected, share):
            return
        began = time.monotonic()
        report.attempt(what, "seeds", learning, plan.seeds_config, seeds, plan.chunks, report.content["seeds"])
        expected = max(expected, 1.5 * (time.monotonic() - began))


def learning(config: gorl.Config, seeds: int, chunks: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast so many seeds learn, given what has been measured of fewer."""
    times, before = learning_seconds(config, seeds, chunks)
    seconds = statistics.median(times)
    one = next((row["chunk_seconds"] for row in rows if row["seeds"] == 1), seconds if seeds == 1 else None)
    return {
        "task": str(config.env),
        "seeds": seeds,
        "steps_per_chunk": config.steps_per_iteration,
        "chunk_seconds": seconds,
        "steps_per_second": seeds * config.steps_per_iteration / seconds,
        "ratio_to_one_by_one": None if one is None else seconds / (seeds * one),
        "seconds": times,
        "seconds_to_start": before,
    }


def kind_of(step: gorl.ScheduleStep) -> str:
    """What a chunk does, by how long it takes."""
    if step.phase == gorl.Phase.LEARN:
        return DECODED if step.stage > 0 else FIRST
    return EVALUATION if step.phase == gorl.Phase.EVALUATE else REFINEMENT


def seconds_of(report: Report, kind: str) -> list[float]:
    """The seconds of the chunks of a kind so far."""
    return [row["seconds"] for row in report.content["stage"] if row["kind"] == kind]


def measure_stage(report: Report, plan: Plan) -> None:
    """The chunks around the end of the first stage of a run, and what the whole run would take.

    Some learning of the first stage; then straight to its end, as a chunk needs nothing but the state before it; and
    then learning through the decoder, with what time is left.
    """
    config = plan.stage_config
    state = first_chunks(report, plan)
    for step, _, seconds in timed(config, at_the_end_of_the_first_stage(config, state)):
        add_chunk(report, config, kind_of(step), seconds)
        learned = len(seconds_of(report, DECODED))
        # What follows may be an evaluation, which must end in time as well.
        if learned and (learned >= plan.stage_chunks or report.left() < 1.5 * longest(report) + 5):
            break


def first_chunks(report: Report, plan: Plan) -> gorl.TrainState:
    """The state after a few chunks of the first stage."""
    for step, state, seconds in timed(plan.stage_config, jax.random.key(0)):
        add_chunk(report, plan.stage_config, COMPILING if step.index == 0 else kind_of(step), seconds)
        learned = len(seconds_of(report, FIRST))
        if learned >= min(3, plan.stage_chunks) or (learned and report.left() < 4 * seconds):
            return state
    raise AssertionError("a stage has at least one iteration")


def at_the_end_of_the_first_stage(config: gorl.Config, state: gorl.TrainState) -> gorl.TrainState:
    """The state as if the chunks up to the last evaluation of the first stage had been done."""
    refinement = int(np.flatnonzero(gorl.make_schedule(config).steps.phase == gorl.Phase.REFINE)[0])
    return eqx.tree_at(lambda s: s.index, state, jnp.asarray(refinement - 1, jnp.int32))


def longest(report: Report) -> float:
    """The seconds of the longest chunk of those that come again and again."""
    return max(max(seconds_of(report, kind), default=0.0) for kind in (DECODED, EVALUATION))


def add_chunk(report: Report, config: gorl.Config, kind: str, seconds: float) -> None:
    """Takes a chunk down, and what the whole run would take as far as that is known now."""
    report.add("stage", {"kind": kind, "seconds": seconds})
    report.content["projection"] = projection(report, config)
    report.save()


def projection(report: Report, config: gorl.Config) -> dict[str, Any]:
    """How often each kind of chunk comes in the whole run, its median seconds, and the hours of all together."""
    counts: dict[str, int] = {}
    for kind in map(kind_of, gorl.make_schedule(config)):
        counts[kind] = counts.get(kind, 0) + 1
    seconds = {kind: statistics.median(seconds_of(report, kind) or [float("nan")]) for kind in counts}
    known = all(seconds_of(report, kind) for kind in counts)
    return {
        "task": str(config.env),
        "env_steps": config.steps_per_iteration * sum(config.stage_iterations),
        "chunks": counts,
        "median_seconds": {kind: seconds[kind] if seconds_of(report, kind) else None for kind in counts},
        "hours": sum(counts[kind] * seconds[kind] for kind in counts) / 3600 if known else None,
    }


def show(report: Report) -> None:
    """Prints all that has been measured."""
    physics, seeds, whole = (report.content[part] for part in ("physics", "seeds", "projection"))
    if physics:
        columns = {
            "task": [row["task"] for row in physics],
            "physics by": [row["implementation"] for row in physics],
            "environments": [str(row["envs"]) for row in physics],
            "steps a second": [f"{row['steps_per_second']:,.0f}" for row in physics],
            "s to start": [f"{row['seconds_to_start']:.0f}" for row in physics],
            "finite": ["yes" if row["finite"] else "NO" for row in physics],
        }
        table("physics under random actions", columns, ("task", "physics by"))
    if seeds:
        ratios = [row["ratio_to_one_by_one"] for row in seeds]
        columns = {
            "seeds": [str(row["seeds"]) for row in seeds],
            "steps a second, all seeds": [f"{row['steps_per_second']:,.0f}" for row in seeds],
            "time / one by one": ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios],
            "s to start": [f"{row['seconds_to_start']:.0f}" for row in seeds],
        }
        table(f"learning on {seeds[0]['task']} in one call", columns)
    if whole:
        kinds = list(whole["chunks"])
        medians = [whole["median_seconds"][kind] for kind in kinds]
        columns = {
            "chunk": kinds,
            "s": ["" if seconds is None else f"{seconds:.2f}" for seconds in medians],
            "in the whole run": [str(whole["chunks"][kind]) for kind in kinds],
        }
        hours = "unknown" if whole["hours"] is None else f"{whole['hours']:.2f} hours"
        table(f"{whole['task']}, {whole['env_steps']:,} steps: {hours}, without compilation", columns, ("chunk",))
    for sentence in report.content["notes"]:
        console.print(sentence)
    console.print(f"left in {report.path}")


def stop(report: Report) -> None:
    """Ends the process whatever it is at, such as in a compiler that cannot be interrupted: all figures are on disk."""
    console.print(f"out of time: what was measured until now is in {report.path}")
    sys.stdout.flush()
    os._exit(1)


def measure(report: Report, plan: Plan) -> None:
    """All parts; shares of the time leave some of it to those that come later."""
    measure_physics(report, plan, 0.35)
    measure_seeds(report, plan, 0.65)
    what = f"the chunks of {plan.stage_config.env}"
    if report.fits(what, 0.0 if jax.default_backend() == "cpu" else 90.0):
        try:
            measure_stage(report, plan)
        except Exception as error:  # as in `attempt`
            report.failed(what, error)
    report.content["finished"] = True
    report.save()


@app.command()
def main(
    smoke: Annotated[bool, typer.Option("--smoke", help="Only see that it runs: tiny sizes, on any device.")] = False,
    minutes: Annotated[float, typer.Option(help="How long the whole may take.")] = 8.5,
    implementation: Annotated[
        str | None, typer.Option(help="The physics of the parts that train: jax or warp; gorl's choice by default.")
    ] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Where the figures go; those of --smoke to a temporary directory.")
    ] = None,
) -> None:
    """Measures physics, seeds side by side and a stage of the paper's size on a GPU."""
    if not smoke and jax.default_backend() != "gpu":
        print("gpu: JAX finds no GPU here: run this where there is one, or give --smoke.", file=sys.stderr)
        raise typer.Exit(2)
    try:
        plan = smoke_plan() if smoke else full_plan(implementation)
    except gorl.InputError as error:
        print(f"gpu: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if out is None:
        out = pathlib.Path(tempfile.mkdtemp(prefix="gorl-gpu-smoke-")) if smoke else RESULTS / "gpu"
    name = machine()["device"].replace(" ", "_").replace("/", "-")
    configs = {"seeds_config": plan.seeds_config.to_json(), "stage_config": plan.stage_config.to_json()}
    report = Report(out / f"{name}.json", minutes, {"smoke": smoke, **configs})
    watchdog = threading.Timer(report.seconds, stop, (report,))
    watchdog.daemon = True
    watchdog.start()
    try:
        if smoke:
            report.note("Warp was left out: it needs CUDA, and this only shows that the rest runs.")
        measure(report, plan)
    finally:
        watchdog.cancel()
    show(report)


if __name__ == "__main__":
    app()
