"""What GoRL does on a GPU, in one command of under nine minutes.

Environment steps per second of tasks and robots under random actions; the time that seeds side by side save; and the
time of each kind of step in the schedule of the paper's preset, which give the hours of the whole run. Results are left
after each measurement.
"""

import collections
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

from ._measure import once, physics_program, timed
from ._report import RESULTS, answer, benchmark, console, in_few_digits, machine, table, write

COMPILING = "compile and evaluate"
FIRST, DECODED, EVALUATION, REFINEMENT = "learn, first stage", "learn, through a decoder", "evaluate", "refine"
PARTS = ("physics", "stage", "seeds")
TINY: dict[str, Any] = {
    "env.episode_length": 20,
    **{f"learner.{name}": 8 for name in ("num_envs", "policy_width", "value_width")},
    **{f"learner.{name}": 2 for name in ("num_minibatches", "num_epochs")},
    **{"learner.unroll_length": 5, "learner.num_unrolls": 1, "decoder.width": 8},
    **{"refinement.num_episodes": 8, "refinement.num_validation_episodes": 2},
    **{"refinement.batch_size": 16, "refinement.num_epochs": 2},
    **{"stage_steps": (400, 400), "evaluation_interval": 200, "evaluation_episodes": 4},
}
app = benchmark("gpu")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: the physics of some tasks, several seeds, and the steps of a run's schedule."""

    physics: tuple[tuple[str, str, int], ...]  # tasks, implementations and numbers of environments
    num_steps: int
    seeds: tuple[int, ...]
    iterations: int  # of learning, for each number of seeds and in each stage
    seeds_config: gorl.Config
    stage_config: gorl.Config


def full_plan(implementation: str | None) -> Plan:
    """What is measured on a GPU; the implementation is that of the physics in training."""
    physics = {"env.implementation": implementation}
    # An evaluation runs a whole episode step by step: short episodes keep it shorter than the learning.
    short = {"env.episode_length": 200, "evaluation_episodes": 16}
    seeds_config = gorl.replace(gorl.reschedule(gorl.preset("PointMass"), num_stages=1), short | physics)
    config = gorl.replace(gorl.preset("FingerSpin", "paper"), physics)
    tasks = [(task, by, 2048) for task in ("FingerSpin", "CheetahRun") for by in ("warp", "jax")]
    robots = [(robot, "warp", 8192) for robot in ("Go1JoystickFlatTerrain", "G1JoystickFlatTerrain")]  # as Playground
    return Plan((*tasks, *robots), 100, (1, 4, 16), 10, seeds_config, config)


def smoke_plan() -> Plan:
    """The same at sizes that only show that it runs, on any device."""
    config = gorl.replace(gorl.preset("MultiGoal", "paper"), TINY)
    return Plan((("PointMass", "jax", 16),), 5, (1, 2), 3, gorl.reschedule(config, num_stages=1), config)


class Report:
    """The measurements so far, on disk after each of them."""

    def __init__(self, path: pathlib.Path, head: dict[str, Any]):
        self.path, self.began = path, time.monotonic()
        empty = {"physics": [], "seeds": [], "stage": [], "projection": None, "notes": []}
        self.content: dict[str, Any] = {**head, "finished": False, **empty}
        self.save()

    def save(self) -> None:
        """Writes everything to disk."""
        self.content["elapsed_seconds"] = time.monotonic() - self.began
        write(self.path, self.content)

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Records a measurement, and prints it."""
        self.content[part].append(row)
        self.save()
        told = [f"{name} {in_few_digits(value)}" for name, value in row.items() if not isinstance(value, list)]
        console.print(f"{part}: {', '.join(told)}")

    def attempt(self, what: str, measure: Callable[..., None], *arguments: Any) -> None:
        """Measures, or records why that failed. The rest goes on."""
        try:
            measure(self, *arguments)
        except Exception as error:  # drivers, compilers and missing packages fail in many ways
            reason = " ".join(str(error).split())[:500]
            self.content["notes"].append(f"{what} failed: {type(error).__name__}: {reason}")
            self.save()
            console.print(self.content["notes"][-1])


def physics(report: Report, task: str, implementation: str, num_envs: int, num_steps: int) -> None:
    """Environment steps per second under random actions, each time from the same start."""
    env = gorl.load_environment(gorl.EnvConfig(task, implementation=implementation))
    began = time.perf_counter()
    run, arguments, _ = physics_program(env, num_envs, num_steps)
    last, rewards = jax.block_until_ready(run(*arguments))
    first = time.perf_counter() - began
    times = [once(run, *arguments) for _ in range(3)]
    row = {"task": task, "implementation": implementation, "envs": num_envs}
    row |= {"steps_per_second": num_envs * num_steps / statistics.median(times), "seconds": times}
    finite = bool(jnp.all(jnp.isfinite(rewards)) & jnp.all(jnp.isfinite(last.observation)))
    report.add("physics", row | {"seconds_to_start": first, "finite": finite})


def learning(report: Report, config: gorl.Config, seeds: int, iterations: int) -> None:
    """How fast several seeds learn in one call, and their time over that of one seed after the other."""
    steps = config.steps_per_iteration * (iterations + 1)
    config = gorl.replace(config, {"stage_steps": (steps,), "evaluation_interval": steps})
    times, before = [], 0.0
    for step, _, took in timed(config, jax.random.split(jax.random.key(0), seeds)):
        if step.phase == gorl.Phase.LEARN:
            times.append(took)
        elif not times:
            before += took
        else:
            break
    seconds = statistics.median(times[1:])
    row = {"task": str(config.env), "seeds": seeds, "env_steps_per_iteration": config.steps_per_iteration}
    row |= {"iteration_seconds": seconds, "steps_per_second": seeds * config.steps_per_iteration / seconds}
    one = next((row["iteration_seconds"] for row in [*report.content["seeds"], row] if row["seeds"] == 1), None)
    row |= {"ratio_to_one_by_one": one and seconds / (seeds * one), "seconds": times[1:], "seconds_to_start": before}
    report.add("seeds", row)


def kind_of(step: gorl.ScheduleStep) -> str:
    """The kind of a step of the schedule: all of a kind take about as long."""
    if step.phase == gorl.Phase.LEARN:
        return DECODED if step.stage > 0 else FIRST
    return EVALUATION if step.phase == gorl.Phase.EVALUATE else REFINEMENT


def stage(report: Report, config: gorl.Config, iterations: int) -> None:
    """Times the steps around the end of the first stage: some learning, the end of the stage, and then learning through
    the decoder."""
    state = None
    for step, state, seconds in timed(config, jax.random.key(0)):  # noqa: B007 (the last one is needed)
        kind = COMPILING if step.index == 0 else kind_of(step)
        if add_step(report, config, kind, seconds) == 3 and kind == FIRST:
            break
    # A step needs nothing but the state before it, so that those up to the last evaluation of the stage can be skipped.
    refinement = int(np.flatnonzero(gorl.make_schedule(config).steps.phase == gorl.Phase.REFINE)[0])
    skipped = eqx.tree_at(lambda s: s.index, state, jnp.asarray(refinement - 1, jnp.int32))
    for step, _, seconds in timed(config, skipped):
        kind = kind_of(step)
        if add_step(report, config, kind, seconds) == iterations and kind == DECODED:
            break


def add_step(report: Report, config: gorl.Config, kind: str, seconds: float) -> int:
    """Records a step and projects the time of the whole run; returns how many steps of this kind there are now."""
    report.add("stage", {"kind": kind, "seconds": seconds})
    times: dict[str, list[float]] = {}
    for row in report.content["stage"]:
        times.setdefault(row["kind"], []).append(row["seconds"])
    counts = collections.Counter(map(kind_of, gorl.make_schedule(config)))
    medians = {kind: statistics.median(times[kind]) for kind in counts if kind in times}
    report.content["projection"] = {
        "task": str(config.env),
        "env_steps": config.steps_per_iteration * sum(config.stage_iterations),
        "steps_of_the_schedule": counts,
        "median_seconds": medians,
        "hours": sum(counts[kind] * medians[kind] for kind in counts) / 3600 if len(medians) == len(counts) else None,
    }
    report.save()
    return len(times[kind])


def measure(report: Report, plan: Plan, parts: tuple[str, ...] = PARTS) -> None:
    """Measures these parts. The seeds come last: if the time is up, the largest number of them is missing."""
    for task, by, num_envs in plan.physics if "physics" in parts else ():
        report.attempt(f"the physics of {task} by {by}", physics, task, by, num_envs, plan.num_steps)
    if "stage" in parts:
        report.attempt(f"the schedule of {plan.stage_config.env}", stage, plan.stage_config, plan.iterations)
    for seeds in plan.seeds if "seeds" in parts else ():
        report.attempt(f"learning of {seeds} seeds", learning, plan.seeds_config, seeds, plan.iterations)
    report.content["finished"] = True
    report.save()


def stop(report: Report) -> None:
    """Ends the process, even inside a compiler that cannot be interrupted: all measurements are on disk."""
    console.print(f"out of time: what was measured until now is in {report.path}")
    sys.stdout.flush()
    os._exit(1)


@app.command()
def main(
    smoke: Annotated[bool, typer.Option("--smoke", help="Only see that it runs: tiny sizes, on any device.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="How long the whole may take.")] = 8.5,
    implementation: Annotated[str | None, typer.Option(help="The physics in training: jax or warp.")] = None,
    part: Annotated[str | None, typer.Option(help=f"Only one of {', '.join(PARTS)}.")] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="The directory of the results.")] = None,
) -> None:
    """Measures physics, seeds side by side and a stage of the paper's size on a GPU."""
    if part not in (None, *PARTS):
        raise gorl.internal.unknown_name("part", part, PARTS)
    plan = smoke_plan() if smoke else full_plan(implementation)
    if not smoke and jax.default_backend() != "gpu":
        raise gorl.InputError("JAX finds no GPU here: run this where there is one, or give --smoke.")
    out = out or (pathlib.Path(tempfile.mkdtemp(prefix="gorl-gpu-smoke-")) if smoke else RESULTS / "gpu")
    name = machine()["device"].replace(" ", "_").replace("/", "-")
    configs = {"seeds_config": plan.seeds_config.to_json(), "stage_config": plan.stage_config.to_json()}
    report = Report(out / f"{name}{f'_{part}' * bool(part)}.json", {"smoke": smoke, "minutes": minutes, **configs})
    watchdog = threading.Timer(60 * minutes, stop, (report,))
    watchdog.daemon = True
    watchdog.start()
    try:
        measure(report, plan, PARTS if part is None else (part,))
    finally:
        watchdog.cancel()
    if whole := report.content["projection"]:
        counts, medians = whole["steps_of_the_schedule"], whole["median_seconds"]
        rows = [{"step": kind, "s": medians.get(kind), "in the whole run": count} for kind, count in counts.items()]
        hours = "unknown" if whole["hours"] is None else f"{whole['hours']:.2f} hours"
        table(f"{whole['task']}, {whole['env_steps']:,} steps: {hours}, without compiling", rows)
    console.print(f"raw: {report.path}")


if __name__ == "__main__":
    answer(app)
