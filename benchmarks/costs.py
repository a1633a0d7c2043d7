"""What whole runs cost: GoRL over Gaussian PPO, eight seeds over one, ten stages over two, the time until a user sees
something, and the memory of a refinement. Each as a ratio, and raw."""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import Annotated, Any

import equinox as eqx
import jax
import typer

import gorl

from ._measure import GORL, compiled, fresh_policy, in_turns, timed, timed_process
from ._report import RESULTS, Out, Repeats, answer, benchmark, console, table, write

app = benchmark("costs", no_args_is_help=True, help=__doc__)
Task = Annotated[str, typer.Option(help="What to train on.")]
COSTS = RESULTS / "costs"


@app.command()
def start(task: Task = "PointMass", repeats: Repeats = 3, out: Out = COSTS) -> None:
    """The time until a user sees something: help, import, and the first evaluation without and with kept programs."""
    gorl.preset(task)  # refuses a task that is not there
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            took = {
                "gorl --help": timed_process(*GORL, "--help")[1],
                "import gorl": timed_process(sys.executable, "-c", "import gorl")[1],
            }
            for kind in ("cold", "warm"):
                took[f"first evaluation, {kind}"] = first_evaluation(task, pathlib.Path(scratch), kind)
        for name, seconds in took.items():
            found.setdefault(name, []).append(seconds)
        write(out / f"start_{task}.json", {"task": task, "repeats": repeats, "seconds": found})
    rows = [{"": name, "s": statistics.median(times)} for name, times in found.items()]
    table(f"until a user sees something ({task}), medians of {repeats}", rows)


def first_evaluation(task: str, scratch: pathlib.Path, name: str) -> float:
    """The seconds from the start of `gorl train` until it has written its first evaluation; then it is stopped."""
    run = scratch / name
    began = time.perf_counter()
    command = (*GORL, "--cache", str(scratch / "cache"), "train", task, "--out", str(run))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (run / "curve.csv").exists():
            if process.poll() is not None:
                raise SystemExit(f"gorl train {task} ended with exit code {process.returncode} before it evaluated.")
            time.sleep(0.02)
        took = time.perf_counter() - began
        process.terminate()
    return took


def steady_seconds(config: gorl.Config, start: jax.Array) -> dict[str, float]:
    """The seconds of a run by phase without compiling: the first step, which includes it, counts as the median one."""
    times: dict[str, list[float]] = {}
    for step, _, took in timed(config, start):
        times.setdefault(gorl.Phase(int(step.phase)).name.lower(), []).append(took)
    first = next(iter(times.values()))
    first[0] = statistics.median(first[1:])
    return {phase: sum(of_phase) for phase, of_phase in times.items()}


def compare(
    title: str, runs: dict[str, tuple[gorl.Config, jax.Array]], scale: float, repeats: int, path: pathlib.Path
) -> None:
    """Times runs in turns, and shows the time of the last over `scale` times that of each of the others."""
    content: dict[str, Any] = {"scale": scale, "repeats": repeats}
    timers = {name: partial(steady_seconds, *run) for name, run in runs.items()}
    found = in_turns(timers, repeats, lambda found: write(path, content | {"seconds": found}))
    totals = {name: statistics.median(sum(run.values()) for run in of_name) for name, of_name in found.items()}
    *others, last = totals
    ratios = {name: totals[last] / (scale * totals[name]) for name in others}
    write(path, content | {"seconds": found, "ratio": ratios[others[0]], "ratios": ratios})
    rows = [
        {"": name}
        | {phase: statistics.median(run.get(phase, 0.0) for run in found[name]) for phase in found[last][0]}
        | {"all, s": totals[name], f"{last} over {scale:g} x this": ratios.get(name)}
        for name in runs
    ]
    table(f"{title}, without compiling, medians of {repeats}", rows)


@app.command()
def decoder(task: Task = "PointMass", repeats: Repeats = 3, out: Out = COSTS) -> None:
    """GoRL with flow matching over Gaussian PPO: whole runs with the same networks and the same number of steps.

    Our PPO has the entropy of the action, by quadrature. Other implementations have that of the Gaussian before `tanh`,
    in closed form, which is cheaper: GoRL is compared with both.
    """
    staged = gorl.preset(task)
    total = sum(staged.stage_steps)
    # The learner of the latents itself, on actions: the preset of Gaussian PPO has other epochs and minibatches.
    closed_form = dataclasses.replace(staged, decoder=gorl.Identity(), stage_steps=(total,))
    quadrature = gorl.replace(closed_form, {"learner.on_actions": True})
    configs = {"Gaussian PPO": quadrature, "Gaussian PPO, entropy in closed form": closed_form, "GoRL, flow": staged}
    runs = {name: (config, jax.random.key(0)) for name, config in configs.items()}
    compare(f"{task}, {total:,} steps", runs, 1.0, repeats, out / f"decoder_{task}.json")


@app.command()
def seeds(
    task: Task = "PointMass",
    number: Annotated[int, typer.Option(min=2, help="Seeds in one call.")] = 8,
    repeats: Repeats = 3,
    out: Out = COSTS,
) -> None:
    """Several seeds in one call, on every core, over the same seeds one after the other."""
    config = gorl.replace(gorl.preset(task), {"stage_steps": (200_000, 200_000), "evaluation_interval": 100_000})
    jax.config.update("jax_num_cpu_devices", gorl.internal.num_cores())
    keys = jax.random.split(jax.random.key(0), number)
    runs = {"1 seed": (config, keys[0]), f"{number} seeds": (config, keys)}
    compare(task, runs, number, repeats, out / f"seeds_{task}.json")


@app.command()
def stages(task: Task = "PointMass", repeats: Repeats = 3, out: Out = COSTS) -> None:
    """Compiling a run of ten stages over compiling one of two, with the same budget."""
    preset = gorl.preset(task)
    total = sum(preset.stage_steps)

    def compiling(number: int) -> float:
        config = gorl.replace(preset, {"stage_steps": (total // number,) * number})
        jax.clear_caches()  # so that it traces again as well
        return compiled(gorl.train, config, jax.random.key(0))[1]

    path, content = out / f"stages_{task}.json", {"task": task, "repeats": repeats}
    runs = {f"{number} stages": partial(compiling, number) for number in (2, 10)}
    found = in_turns(runs, repeats, lambda found: write(path, content | {"seconds": found}))
    few, many = (statistics.median(times) for times in found.values())
    rows = [{"": name, "compiling, s": s, "ratio": s / few} for name, s in zip(found, (few, many), strict=True)]
    table(f"{task}, {total:,} steps in all, medians of {repeats}", rows)


@app.command()
def memory(
    task: Task = "CartpoleSwingup",
    episodes: Annotated[int, typer.Option(min=2, help="Episodes of the data.")] = 512,
    out: Out = COSTS,
) -> None:
    """The memory of a refinement over that of its data, as XLA plans it."""
    preset = gorl.replace(gorl.preset(task, scale="paper"), {"refinement.num_episodes": episodes})
    configs = {stride: gorl.replace(preset, {"refinement.stride": stride}) for stride in (8, 4, 2, 1)}
    found = {stride: refinement_megabytes(config) for stride, config in configs.items()}
    less, more = found[2], found[1]
    slope = (more["peak"] - less["peak"]) / (more["data"] - less["data"])
    constant = more["peak"] - slope * more["data"]
    content = {"task": task, "episodes": episodes, "megabytes_by_stride": found, "slope": slope, "constant": constant}
    write(out / f"memory_{task}.json", content)
    rows = [
        {"stride": stride, "data, MB": of["data"], "peak, MB": of["peak"], "peak / data": of["peak"] / of["data"]}
        for stride, of in found.items()
    ]
    table(f"a refinement on {task}, {episodes} episodes", rows)
    console.print(f"peak = {slope:.2f} x data + {constant:.0f} MB (environments, and one gradient step)")


def refinement_megabytes(config: gorl.Config) -> dict[str, float]:
    """The megabytes of the data of a refinement, and the most that it needs at once, with the data."""
    env, refinement, learner = gorl.load_environment(config.env), config.refinement, config.learner

    def collect_dataset(policy: gorl.Policy, key: jax.Array) -> tuple:
        arguments = (refinement.num_episodes, refinement.stride, learner.unroll_length, key)
        return gorl.collect_dataset(env, policy, *arguments)[:2]  # without the latents, which no decoder is fitted to

    def refine(policy: gorl.Policy, key: jax.Array) -> tuple[Any, gorl.Fit]:
        observations, actions = collect_dataset(policy, key)
        fresh = config.decoder.init(gorl.RunningStatistics.of(observations), env.action_size, key)
        return gorl.fit_decoder(fresh, observations, actions, refinement, key)

    arguments = (fresh_policy(config, env, is_fitted=False), jax.random.key(2))
    leaves = jax.tree.leaves(eqx.filter_eval_shape(collect_dataset, *arguments))
    plan = compiled(refine, *arguments)[0].compiled.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
    data = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return {"data": data / 1e6, "peak": (plan.temp_size_in_bytes + plan.output_size_in_bytes) / 1e6}


if __name__ == "__main__":
    answer(app)
