"""How fast a CPU simulates tasks: MuJoCo's engine by itself, environments on it and on MJX, and EnvPool's tasks.

The environments take random actions in a jitted scan, and the actions of a flow in `gorl.rollout`. All are measured in
turns.
"""

import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from typing import Annotated, cast

import typer

import gorl

from ._measure import engine_seconds, fresh_policy, in_turns, once, physics_program, rollout_program, timed_process
from ._report import RESULTS, Out, Repeats, Tasks, answer, benchmark, table, write

TASKS = ("CheetahRun", "FingerSpin", "HopperStand", "WalkerWalk", "FishSwim", "HumanoidRun")
OTHERS = ("engine alone", "scan, EnvPool")
app = benchmark("physics")


def rollout_timer(config: gorl.Config) -> tuple[Callable[[], float], float]:
    """What measures the environment steps per second of a rollout with the flow, and the seconds of compiling it."""
    env = gorl.load_environment(config.env)
    program, arguments, experience, compiling = rollout_program(config, env, fresh_policy(config, env))
    return lambda: experience.reward.size / once(program, *arguments), compiling


def envpool_seconds(task: str, num_envs: int, num_steps: int) -> float:
    """The seconds that EnvPool takes for the same number of steps, in a process of its own."""
    num_threads = gorl.internal.num_cores()
    settings = {"task": task, "num_envs": num_envs, "num_steps": num_steps, "num_threads": num_threads}
    printed, _ = timed_process(sys.executable, "-m", "benchmarks._peer_envpool", json.dumps(settings))
    return json.loads(printed.splitlines()[-1])["seconds"]


def measure(
    config: gorl.Config, num_envs: int, num_steps: int, repeats: int, with_jax: bool, with_envpool: bool
) -> dict:
    """The environment steps per second of one task by everything that simulates it, and their ratios."""
    by = {name: gorl.replace(config, {"env.implementation": name}) for name in ("mujoco", "jax")[: 1 + with_jax]}
    engine, amount = (by["mujoco"].env, gorl.load_environment(by["mujoco"].env)), num_envs * num_steps
    compiling: dict[str, float] = {}
    runs: dict[str, Callable[[], float]] = {}
    runs["engine alone"] = lambda: amount / cast(float, engine_seconds(*engine, num_envs, num_steps))
    for name, of_name in by.items():
        steps = num_steps if name == "mujoco" else max(1, num_steps // 10)  # MJX is many times slower
        program, arguments, seconds = physics_program(gorl.load_environment(of_name.env), num_envs, steps)
        compiling[f"scan, {name}"] = seconds
        runs[f"scan, {name}"] = lambda steps=steps, call=(program, *arguments): num_envs * steps / once(*call)
    for name, of_name in by.items():
        runs[f"rollout, {name}"], compiling[f"rollout, {name}"] = rollout_timer(of_name)
    if with_envpool:
        runs["scan, EnvPool"] = lambda: amount / envpool_seconds(str(config.env), num_envs, num_steps)
    in_turns(runs, 1)  # allocates what later calls find
    rates = in_turns(runs, repeats)
    medians = {name: statistics.median(of_name) for name, of_name in rates.items()}
    compared = {f"scan over {name.removeprefix('scan, ')}": ("scan, mujoco", name) for name in OTHERS}
    compared |= {f"{kind} over MJX": (f"{kind}, mujoco", f"{kind}, jax") for kind in ("scan", "rollout")}
    ratios = {name: medians[one] / medians[other] for name, (one, other) in compared.items() if other in medians}
    return {"steps_per_second": rates, "medians": medians, "ratios": ratios, "compiling": compiling}


@app.command()
def main(
    tasks: Tasks = None,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments side by side.")] = 512,
    num_steps: Annotated[int, typer.Option(min=1, help="Control steps of each in a scan.")] = 200,
    repeats: Repeats = 5,
    with_jax: Annotated[bool, typer.Option("--jax/--no-jax", help="MJX as well, which compiles for minutes.")] = True,
    with_envpool: Annotated[bool, typer.Option("--envpool", help="EnvPool's tasks as well.")] = False,
    out: Out = RESULTS / "physics",
) -> None:
    """Measures how fast tasks are simulated."""
    if with_envpool and importlib.util.find_spec("envpool") is None:
        raise gorl.InputError("envpool is not installed: pip install envpool.")
    configs = {task: gorl.preset(task) for task in tasks or TASKS}
    for config in configs.values():  # refuses environments that MuJoCo does not simulate, before anything compiles
        gorl.load_environment(gorl.replace(config, {"env.implementation": "mujoco"}).env)
    for task, config in configs.items():
        found = measure(config, num_envs, num_steps, repeats, with_jax, with_envpool)
        sizes = {"num_envs": num_envs, "num_steps": num_steps, "repeats": repeats}
        write(out / f"{task}.json", {"task": task, **sizes, **found})
        rows = [
            {"": name, "steps per second": rate, "compiling, s": found["compiling"].get(name)}
            for name, rate in found["medians"].items()
        ]
        table(f"{task}, medians of {repeats}", rows)
        table(task, [found["ratios"]])


if __name__ == "__main__":
    answer(app)
