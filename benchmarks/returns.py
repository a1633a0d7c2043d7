"""What every method earns: tasks by methods, all seeds of a cell in one vmapped run of `gorl train`.

A cell leaves `TASK_METHOD.csv`, the raw curve, and `TASK_METHOD.json`: the config, the machine, the versions and what
the best policies earned. Finished cells do not run again, so that a benchmark that was stopped goes on.
"""

import csv
import json
import pathlib
import subprocess
import tempfile
import time
from typing import Annotated, Any

import matplotlib.figure
import matplotlib.ticker
import numpy as np
import typer

import gorl

from . import _report
from ._measure import GORL
from ._report import PALETTE, Out, Tasks, answer, benchmark, console, png, table, write

TRAIN = (*GORL, "train")
RESULTS = _report.RESULTS / "returns"
PAPER_RETURNS = pathlib.Path(__file__).parent / "paper_returns.csv"
PAPER_BUDGETS = {60_000_000: "return_60M", 120_000_000: "return_120M", 180_000_000: "return_180M_mean"}
app = benchmark("returns")


class Cell:
    """One task and one method: the seeds of a preset, side by side, and the files of their results."""

    def __init__(self, scale: str, task: str, method: str, first_seed: int, seeds: int, directory: pathlib.Path):
        self.scale, self.task, self.method, self.first_seed, self.seeds = scale, task, method, first_seed, seeds
        self.config = gorl.preset(task, scale, method)
        stem = f"{task.replace('/', '-')}_{method}"
        self.curve_file, self.summary_file = directory / f"{stem}.csv", directory / f"{stem}.json"

    @property
    def has_results(self) -> bool:
        """Whether there are results, of whatever config."""
        return self.summary_file.exists() and self.curve_file.exists()

    @property
    def is_finished(self) -> bool:
        """Whether there are results of the present preset, of this number of seeds or more."""
        if not self.has_results or self.summary()["seeds"] < self.seeds:
            return False
        try:
            config = gorl.Config.from_json(json.dumps(self.summary()["config"]))
        except gorl.InputError:  # a version whose fields are gone
            return False
        return config.to_json() == self.config.to_json()  # a field that is new since then has its default

    def summary(self) -> dict[str, Any]:
        """What the cell left besides its curve."""
        return json.loads(self.summary_file.read_text())

    def run(self, deadline: float) -> bool:
        """Runs it in a process of its own. False if the deadline came first; then nothing is left."""
        with tempfile.TemporaryDirectory() as scratch:
            run = pathlib.Path(scratch) / "run"
            what = (self.task, "--scale", self.scale, "--method", self.method, "--seed", str(self.first_seed))
            options = (*what, "--seeds", str(self.seeds), "--out", str(run))
            left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
            try:
                code = subprocess.run([*TRAIN, *options], timeout=left).returncode
            except subprocess.TimeoutExpired:
                return False
            if code != 0:
                raise SystemExit(f"gorl train {self.task} --method {self.method} ended with exit code {code}.")
            self.curve_file.parent.mkdir(parents=True, exist_ok=True)
            gorl.internal.write_whole(self.curve_file, (run / "curve.csv").read_bytes())
            summary, config = (json.loads((run / f"{name}.json").read_text()) for name in ("summary", "config"))
            # Last, as it says that everything is there.
            write(self.summary_file, summary | {"seeds": self.seeds, "config": config})
        return True

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """The environment steps of the evaluations, and the mean return of each seed in each of them."""
        of_seed: dict[int, list[tuple[int, float]]] = {}
        with self.curve_file.open() as file:
            for row in csv.DictReader(file):
                point = int(row["env_steps"]), float(row["return_mean"])
                of_seed.setdefault(int(row["seed"]), []).append(point)
        points = np.array([of_seed[seed] for seed in sorted(of_seed)])
        return points[0, :, 0].astype(int), points[:, :, 1]

    def last(self) -> str:
        """The mean return at the end with the ends of its interval, and how many seeds are not in it."""
        returns = self.curve()[1][:, -1]
        found, diverged = gorl.internal.interval(returns), int(np.sum(~np.isfinite(returns)))
        text = f"{found.mean:.1f} {found.ends}"
        return text + f" ({diverged} of {len(returns)} seeds diverged)" * bool(diverged)

    def row(self) -> dict[str, Any]:
        """What the table says of it."""
        steps, returns = self.curve()
        summary, found = self.summary(), gorl.internal.interval(returns, axis=0)
        return {
            "task": self.task,
            "method": self.method,
            "seeds": len(returns),
            "env steps": int(steps[-1]),
            f"last ({found.name})": self.last(),
            "last / best": f"{found.mean[-1] / np.nanmax(found.mean):.0%}",
            "best policy": float(gorl.internal.interval(np.array(list(summary["best_policy_return"].values()))).mean),
            "paper": self.paper_return(int(steps[-1])),
            "min": summary["wall_seconds"] / 60,
            "preset": "this" if self.is_finished else "older",
        }

    def paper_return(self, steps: int) -> str:
        """The return that the paper reports of this task and method after this number of steps, if it does."""
        near = [column for budget, column in PAPER_BUDGETS.items() if abs(steps - budget) <= 0.05 * budget]
        name = self.method.replace("gorl-", "gorl_")
        with PAPER_RETURNS.open() as file:
            found = [row for row in csv.DictReader(file) if (row["task"], row["method"]) == (self.task, name)]
        return found[0][near[0]] if near and found else ""


def figure(cells: list[Cell]) -> bytes:
    """Learning curves as a PNG file: a panel for each task, a line for each method, with their intervals."""
    tasks, methods = (list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("task", "method"))
    picture = matplotlib.figure.Figure(figsize=(4.6 * len(tasks), 3.8), layout="constrained")
    panels = dict(zip(tasks, picture.subplots(1, len(tasks), squeeze=False)[0], strict=True))
    lines, names, seeds = {}, set(), {task: set() for task in tasks}
    for cell in cells:
        steps, returns = cell.curve()
        found, index = gorl.internal.interval(returns, axis=0), methods.index(cell.method)
        # Two methods may share a stage, line on line: every other line is dashed.
        style = {"linestyle": ("-", "--")[index % 2], "color": PALETTE[index % len(PALETTE)]}
        (lines[cell.method],) = panels[cell.task].plot(steps, found.mean, linewidth=1.8, label=cell.method, **style)
        panels[cell.task].fill_between(steps, found.low, found.high, color=style["color"], alpha=0.15, linewidth=0)
        names.add(found.name)
        seeds[cell.task].add(len(returns))
    for task, axes in panels.items():
        axes.set_title(f"{task} ({' or '.join(map(str, sorted(seeds[task])))} seeds)", loc="left")
        axes.set(xlabel="environment steps", xlim=(0, None))
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), None)
        axes.spines[["top", "right"]].set_visible(False)
    panels[tasks[0]].set_ylabel(f"mean return, {' or '.join(sorted(names))}")
    picture.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return png(picture)


def markdown(cells: list[Cell]) -> str:
    """The returns at the end, as the README shows them: a row for each method, a column for each task."""
    last = {(cell.task, cell.method): cell.last() for cell in cells}
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*last, strict=True))
    rows = [["`--method`", *tasks], ["---", *["--:"] * len(tasks)]]
    rows += [[f"`{method}`", *(last.get((task, method), "") for task in tasks)] for method in methods]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@app.command()
def main(
    tasks: Tasks = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="A method; all of them by default.")] = None,
    first_seed: Annotated[int, typer.Option("--seed", help="The first seed; take none that chose the preset.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds in each cell.")] = 5,
    scale: Annotated[str, typer.Option(help="The preset: laptop or paper.")] = "laptop",
    minutes: Annotated[float, typer.Option(help="Stop after this long; an unfinished cell leaves nothing.")] = float(
        "inf"
    ),
    out: Out = RESULTS,
    show: Annotated[bool, typer.Option("--show", help="Run nothing; show the results that there are.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Show them as the README does.")] = False,
) -> None:
    """Runs the cells that have no results of the present preset yet, and shows all results."""
    deadline = time.monotonic() + 60 * minutes
    cells = [
        Cell(scale, task, method, first_seed, seeds, out / scale)
        for task in tasks or ["PointMass"]
        for method in methods or list(gorl.methods())
    ]
    for cell in [] if show else cells:
        if cell.is_finished:
            continue
        console.print(f"[bold]{cell.method} on {cell.task}")
        if not cell.run(deadline):
            console.print(f"out of time at {cell.method} on {cell.task}")
            break
    shown = [cell for cell in cells if cell.has_results]
    if shown:
        print(markdown(shown)) if as_markdown else table("return: mean over seeds", [cell.row() for cell in shown])
        gorl.internal.write_whole(out / scale / "returns.png", figure(shown))
    left = [f"{cell.method} on {cell.task}" for cell in cells if not cell.is_finished]
    if left and not show:
        console.print(f"not finished: {', '.join(left)}; run the same command again to go on")


if __name__ == "__main__":
    answer(app)
