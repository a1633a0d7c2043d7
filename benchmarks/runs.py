"""What keeping a run on disk costs, and what training settings side by side saves; each as a ratio.

`checkpoints` trains the same run with and without checkpoints in turns, and also measures the time inside the saves,
which the noise between two runs does not touch. `sweep` trains settings in one `gorl sweep`, and then each in a `gorl
train` of its own, compilation included.
"""

import pathlib
import statistics
import tempfile
import time
from typing import Annotated

import jax
import rich.table
import typer

import gorl

from ._report import GORL, RESULTS, console, process_seconds, write

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def checkpoints(
    task: Annotated[str, typer.Option(help="What to train on.")] = "PointMass",
    methods: Annotated[list[str] | None, typer.Option("--method", help="How; may be given several times.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds side by side.")] = 4,
    steps: Annotated[str, typer.Option(help="Environment steps per seed.")] = "1.2e6",
    every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 30.0,
    repeats: Annotated[int, typer.Option(help="Runs of each kind, in turns.")] = 2,
) -> None:
    """What a checkpoint every so many seconds costs."""
    table = rich.table.Table(title=f"{task}, {seeds} seeds, a checkpoint every {every:g} s", title_justify="left")
    for column in ("method", "MB", "s a save", "share of the time", "with / without", "s without"):
        table.add_column(column, justify="right")
    results = {}
    for method in methods or ["gorl-flow"]:
        times = {"with": [], "without": []}
        for _ in range(repeats):
            for kind, interval in (("without", "inf"), ("with", str(every))):
                with tempfile.TemporaryDirectory() as scratch:
                    options = ("--method", method, "--seeds", str(seeds), "--steps", steps)
                    out = ("--checkpoint-every", interval, "--out", f"{scratch}/run")
                    times[kind].append(process_seconds(*GORL, "train", task, *options, *out))
        saves, megabytes, total = saving(gorl.preset(task, method=method), int(float(steps)), seeds, every)
        ratio = statistics.median(times["with"]) / statistics.median(times["without"])
        results[method] = {
            "seconds_with": times["with"],
            "seconds_without": times["without"],
            "ratio": ratio,
            "seconds_of_saves": saves,
            "seconds_in_all": total,
            "share": sum(saves) / total,
            "megabytes": megabytes,
        }
        table.add_row(
            method,
            f"{megabytes:.1f}",
            f"{statistics.median(saves):.3f}",
            f"{sum(saves) / total:.2%}",
            f"{ratio:.3f}",
            f"{statistics.median(times['without']):.0f}",
        )
    console.print(table)
    write(
        RESULTS / "runs" / f"checkpoints_{task}.json",
        {"seeds": seeds, "steps": steps, "every": every, "methods": results},
    )


def saving(config: gorl.Config, steps: int, seeds: int, every: float) -> tuple[list[float], float, float]:
    """The seconds of each save of a run in this process, the size of the file in MB, and the seconds in all."""
    config = gorl.reschedule(config, total_steps=steps)
    saves = []
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "state"
        began = last = time.perf_counter()
        for _, state in gorl.iterate(config, jax.random.split(jax.random.key(0), seeds)):
            jax.block_until_ready(state.index)
            now = time.perf_counter()
            if now - last >= every:
                gorl.save_state(path, state, config)
                last = time.perf_counter()
                saves.append(last - now)
        return saves, path.stat().st_size / 1e6, time.perf_counter() - began


@app.command()
def sweep(
    task: Annotated[str, typer.Option(help="What to train on.")] = "PointMass",
    method: Annotated[str, typer.Option(help="How.")] = "gorl-flow",
    field: Annotated[str, typer.Option(help="What is set.")] = "learner.learning_rate",
    values: Annotated[str, typer.Option(help="To what, with commas between.")] = "5e-4,1e-3,2e-3,4e-3",
    seeds: Annotated[int, typer.Option(help="Seeds of each setting.")] = 4,
    steps: Annotated[str, typer.Option(help="Environment steps per seed.")] = "1.2e6",
) -> None:
    """The time of one sweep over that of the separate runs."""
    options = (task, "--method", method, "--seeds", str(seeds), "--steps", steps)
    with tempfile.TemporaryDirectory() as scratch:
        together = process_seconds(*GORL, "sweep", *options, "--set", f"{field}={values}", "--out", f"{scratch}/sweep")
        apart = [
            process_seconds(*GORL, "train", *options, "--set", f"{field}={value}", "--out", f"{scratch}/{value}")
            for value in values.split(",")
        ]
    ratio = together / sum(apart)
    table = rich.table.Table(title=f"{method} on {task}, {field}={values}, {seeds} seeds, {steps} steps")
    for column in ("one sweep, s", "runs apart, s", "ratio"):
        table.add_column(column, justify="right")
    table.add_row(f"{together:.0f}", " + ".join(f"{seconds:.0f}" for seconds in apart), f"{ratio:.2f}")
    console.print(table)
    content = {"method": method, "field": field, "values": values, "seeds": seeds, "steps": steps}
    write(
        RESULTS / "runs" / f"sweep_{task}.json",
        {**content, "seconds_of_sweep": together, "seconds_apart": apart, "ratio": ratio},
    )


if __name__ == "__main__":
    app()
