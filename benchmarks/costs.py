"""What whole runs cost: the pipeline that the public GoRL code takes 776 s for, the time until something is seen, GoRL
over Gaussian PPO, eight seeds over one, many stages over few, and the memory of a refinement. Each as a ratio, and raw.
"""

import dataclasses
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any

import equinox as eqx
import jax
import typer

import gorl

from ._report import GORL, RESULTS, answer, compiled, console, num_cores, process_seconds, table, timed, write
from .peers import PIPELINE, run_pipeline

# The whole process of the public code at the sizes of `PIPELINE` on two cores, measured before there was a GoRL.
PUBLIC_SECONDS = 776
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)
Out = Annotated[pathlib.Path, typer.Option(help="Where the results go.")]
Repeats = Annotated[int, typer.Option(min=1, help="How often each is measured, in turns; medians are compared.")]
Task = Annotated[str, typer.Option(help="What to train on.")]
COSTS = RESULTS / "costs"


@app.command()
def pipeline(repeats: Repeats = 3, out: Out = COSTS) -> None:
    """The public pipeline's work, whole process and nothing cached, over the 776 s that the public code took.

    `python -m benchmarks.peers --public CHECKOUT` runs that code beside ours.
    """
    content: dict[str, Any] = {"settings": PIPELINE, "public_seconds": PUBLIC_SECONDS, "runs": []}
    for _ in range(repeats):
        content["runs"].append(run_pipeline("CartpoleSwingup", PIPELINE))
        write(out / "pipeline.json", content)
    seconds = statistics.median(run["seconds"] for run in content["runs"])
    table(
        "CartpoleSwingup, two stages of 500,000 steps",
        {
            "": ["public code (as measured before)", "gorl"],
            "s": [f"{PUBLIC_SECONDS}", f"{seconds:.0f}"],
            "times faster": ["1.0", f"{PUBLIC_SECONDS / seconds:.1f}"],
            "best policies": ["", ", ".join(f"{run['best_policy_return']:.0f}" for run in content["runs"])],
        },
        left=("",),
    )


@app.command()
def start(task: Task = "PointMass", repeats: Repeats = 3, out: Out = COSTS) -> None:
    """The time until something is seen: help, import, and the first evaluation with and without kept programs."""
    kinds = ("gorl --help", "import gorl", "first evaluation, cold", "first evaluation, warm")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        found["gorl --help"].append(process_seconds(*GORL, "--help"))
        found["import gorl"].append(process_seconds(sys.executable, "-c", "import gorl"))
        with tempfile.TemporaryDirectory() as scratch:
            for kind in ("cold", "warm"):
                found[f"first evaluation, {kind}"].append(first_evaluation(task, pathlib.Path(scratch), kind))
        write(out / f"start_{task}.json", {"task": task, "seconds": found})
    medians = [statistics.median(times) for times in found.values()]
    table(f"until something is seen ({task})", {"": list(kinds), "s": [f"{s:.2f}" for s in medians]}, left=("",))


def first_evaluation(task: str, scratch: pathlib.Path, name: str) -> float:
    """The seconds from the start of `gorl train` until its first evaluation has been written; then it is stopped."""
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
    """The seconds of a run by phase, without compilation: the chunk that it falls into counts as the median one."""
    times: dict[str, list[float]] = {phase.name.lower(): [] for phase in gorl.Phase}
    for step, _, took in timed(config, start):
        times[gorl.Phase(int(step.phase)).name.lower()].append(took)
    first = gorl.Phase(int(gorl.make_schedule(config).steps.phase[0])).name.lower()
    times[first][0] = statistics.median(times[first][1:])
    return {phase: sum(of_phase) for phase, of_phase in times.items() if of_phase}


def compare(
    title: str, runs: dict[str, tuple[gorl.Config, jax.Array]], scale: float, repeats: int, path: pathlib.Path
) -> None:
    """Times two runs in turns, and shows the time of the second over `scale` times that of the first."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (config, keys) in runs.items():
            found[name].append(steady_seconds(config, keys))
            write(path, {"seconds": found, "scale": scale})
    totals = {name: statistics.median(sum(run.values()) for run in of_name) for name, of_name in found.items()}
    first, second = totals
    ratio = totals[second] / (scale * totals[first])
    write(path, {"seconds": found, "scale": scale, "ratio": ratio})
    phases = [phase.name.lower() for phase in gorl.Phase]
    by_phase = {
        phase: [f"{statistics.median(run.get(phase, 0.0) for run in found[name]):.1f}" for name in runs]
        for phase in phases
    }
    over = ["", f"{ratio:.2f}"]
    columns = {"": list(runs), **by_phase, "s in all": [f"{total:.1f}" for total in totals.values()], "ratio": over}
    table(title, columns, left=("",))


@app.command()
def decoder(task: Task = "PointMass", repeats: Repeats = 3, out: Out = COSTS) -> None:
    """GoRL with flow matching over Gaussian PPO: a whole run each of as many steps, with the same networks."""
    staged = gorl.preset(task)
    total = sum(staged.stage_steps)
    # The preset of Gaussian PPO has other epochs and minibatches: this is the latent learner itself, on actions.
    learner = dataclasses.replace(staged.learner, on_actions=True)
    single = dataclasses.replace(staged, learner=learner, decoder=gorl.Identity(), stage_steps=(total,))
    runs = {"Gaussian PPO": (single, jax.random.key(0)), "GoRL, flow": (staged, jax.random.key(0))}
    compare(
        f"{task}, {total:,} steps, compilation aside",
        runs,
        1.0,
        repeats,
        out / f"decoder_{task}.json",
    )


@app.command()
def seeds(
    task: Task = "PointMass",
    number: Annotated[int, typer.Option(min=2, help="Seeds in one call.")] = 8,
    repeats: Repeats = 3,
    out: Out = COSTS,
) -> None:
    """Several seeds in one call, on every core, over as many times one seed."""
    jax.config.update("jax_num_cpu_devices", num_cores())
    config = gorl.replace(gorl.preset(task), {"stage_steps": (200_000, 200_000), "evaluation_interval": 100_000})
    keys = jax.random.split(jax.random.key(0), number)
    runs = {"1 seed": (config, keys[0]), f"{number} seeds": (config, keys)}
    compare(f"{task}, compilation aside", runs, number, repeats, out / f"seeds_{task}.json")


@app.command()
def stages(task: Task = "PointMass", repeats: Repeats = 3, out: Out = COSTS) -> None:
    """Compiling a run of ten stages over compiling one of two, with the same budget."""
    found: dict[str, list[float]] = {"2 stages": [], "10 stages": []}
    preset = gorl.preset(task)
    total = sum(preset.stage_steps)
    for _ in range(repeats):
        for name in found:
            number = int(name.split()[0])
            config = gorl.replace(preset, {"stage_steps": (total // number,) * number})
            jax.clear_caches()  # tracing again as well
            found[name].append(compiled(gorl.train, config, jax.random.key(0))[1])
            write(out / f"stages_{task}.json", {"task": task, "seconds": found})
    few, many = (statistics.median(times) for times in found.values())
    columns = {"": list(found), "compiling, s": [f"{few:.1f}", f"{many:.1f}"], "ratio": ["", f"{many / few:.2f}"]}
    table(f"{task}, {total:,} steps in all", columns, left=("",))


@app.command()
def memory(
    task: Task = "CartpoleSwingup",
    episodes: Annotated[int, typer.Option(min=2, help="Episodes that are demonstrated.")] = 512,
    out: Out = COSTS,
) -> None:
    """The memory of a refinement over the bytes of its data, as XLA plans it."""
    found: dict[int, dict[str, float]] = {}
    for stride in (8, 4, 2, 1):
        changes = {"refinement.num_episodes": episodes, "refinement.stride": stride}
        config = gorl.replace(gorl.preset(task, scale="paper"), changes)
        found[stride] = refinement_bytes(config)
        write(out / f"memory_{task}.json", {"task": task, "episodes": episodes, "megabytes_by_stride": found})
    (less, more) = found[2], found[1]
    slope = (more["peak"] - less["peak"]) / (more["data"] - less["data"])
    constant = more["peak"] - slope * more["data"]
    content = {"task": task, "episodes": episodes, "megabytes_by_stride": found, "slope": slope, "constant": constant}
    write(out / f"memory_{task}.json", content)
    columns = {"stride": [str(stride) for stride in found]}
    for kind in ("data", "peak"):
        columns[f"{kind}, MB"] = [f"{of_stride[kind]:.0f}" for of_stride in found.values()]
    columns["peak / data"] = [f"{of_stride['peak'] / of_stride['data']:.2f}" for of_stride in found.values()]
    table(f"a refinement on {task}, {episodes} episodes", columns)
    console.print(f"peak = {slope:.2f} x data + {constant:.0f} MB (environments, and one gradient step)")


def refinement_bytes(config: gorl.Config) -> dict[str, float]:
    """The megabytes of the data of a refinement, and the most that it needs at once, the data included."""
    episodes = gorl.load_environment(config.env)
    refinement, learner = config.refinement, config.learner

    def collect_dataset(policy: gorl.Policy, key: jax.Array) -> tuple:
        arguments = (refinement.num_episodes, refinement.stride, learner.unroll_length, key)
        return gorl.collect_dataset(episodes, policy, *arguments)[:2]  # latents of its own a decoder is not fitted to

    def refine(policy: gorl.Policy, key: jax.Array) -> tuple[Any, gorl.Fit]:
        observations, actions = collect_dataset(policy, key)
        fresh = config.decoder.init(gorl.RunningStatistics.of(observations), episodes.action_size, key)
        return gorl.fit_decoder(fresh, observations, actions, refinement, key)

    memory = learner.init(episodes.observation_size, episodes.action_size, jax.random.key(0))
    empty = gorl.RunningStatistics.empty(episodes.observation_size)
    identity = config.decoder.init(empty, episodes.action_size, jax.random.key(1))
    sizes = (episodes.observation_size, episodes.action_size)
    policy = gorl.Policy(learner.encoder(memory), gorl.StagedDecoder(identity, jax.numpy.asarray(False)), *sizes)
    data = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(eqx.filter_eval_shape(collect_dataset, policy, jax.random.key(2)))
    )
    plan = compiled(refine, policy, jax.random.key(2))[0].compiled.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
    return {"data": data / 1e6, "peak": (plan.temp_size_in_bytes + plan.output_size_in_bytes) / 1e6}


if __name__ == "__main__":
    answer(app)
