"""What every method earns: tasks by methods, all seeds of a cell in one vmapped run of `gorl train`.

A cell leaves `TASK_METHOD.csv` (the raw curve: a row per seed and evaluation) and `TASK_METHOD.json` (config, versions,
what the best policies earned). Finished cells are not run again, so the whole can be stopped and gone on with.
"""

import csv
import functools
import json
import pathlib
import signal
import subprocess
import tempfile
import time
from typing import Annotated

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np
import rich.table
import typer
from rliable import library, metrics

import gorl

from ._report import GORL, console, png

TRAIN = (*GORL, "train")
RESULTS = pathlib.Path(__file__).parent / "results" / "returns"
PAPER_RETURNS = pathlib.Path(__file__).parent / "paper_returns.csv"
# Okabe and Ito's palette, which colour-blind people can tell apart.
COLOURS = {
    "gorl-flow": "#0072B2",
    "gorl-diffusion": "#D55E00",
    "gorl-sac": "#CC79A7",
    "ppo": "#000000",
    "fpo": "#009E73",
    "fpo++": "#56B4E9",
    "dppo": "#E69F00",
    "sac": "#999999",
}
PAPER_NAMES = {"gorl-flow": "gorl_flow", "gorl-diffusion": "gorl_diffusion"}
DASHED = {"gorl-diffusion"}  # its first stage is that of gorl-flow, line on line


class Cell:
    """One task and one method.

    **Arguments:**

    - `scale`, `task`, `method`: what to run.
    - `seeds`: how many seeds, side by side.
    - `directory`: where the results of this scale go.
    """

    def __init__(self, scale: str, task: str, method: str, seeds: int, directory: pathlib.Path):
        self.scale, self.task, self.method, self.seeds = scale, task, method, seeds
        self.config = gorl.preset(task, scale, method)
        stem = directory / f"{task.replace('/', '-')}_{method}"
        self.curve_file, self.summary_file = (stem.with_name(stem.name + suffix) for suffix in (".csv", ".json"))

    def is_finished(self) -> bool:
        """Whether the results are there, of the config that would be run now and of no fewer seeds."""
        if not self.summary_file.exists() or not self.curve_file.exists():
            return False
        summary = self.summary()
        try:
            config = gorl.Config.from_json(json.dumps(summary["config"]))
        except gorl.InputError:  # of a version whose fields are gone
            return False
        # As text, and by way of a config: a field that came later had what is now its default.
        return config.to_json() == self.config.to_json() and summary["seeds"] >= self.seeds

    def summary(self) -> dict:
        """What the cell left besides its curve."""
        return json.loads(self.summary_file.read_text())

    def run(self, deadline: float) -> bool:
        """Runs it in a process of its own; false if the deadline came first, and then nothing is left behind."""
        with tempfile.TemporaryDirectory() as scratch:
            run = pathlib.Path(scratch) / "run"
            options = ("--scale", self.scale, "--method", self.method, "--seeds", str(self.seeds), "--out", str(run))
            process = subprocess.Popen([*TRAIN, self.task, *options])
            try:
                code = process.wait(None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait()
                return False
            except KeyboardInterrupt:
                process.wait()
                raise
            if code != 0:
                raise SystemExit(f"gorl train {self.task} --method {self.method} ended with exit code {code}.")
            summary = json.loads((run / "summary.json").read_text())
            summary |= {"seeds": self.seeds, "config": json.loads((run / "config.json").read_text())}
            self.curve_file.parent.mkdir(parents=True, exist_ok=True)
            gorl.internal.write_whole(self.curve_file, (run / "curve.csv").read_bytes())
            gorl.internal.write_whole(
                self.summary_file, json.dumps(summary, indent=2) + "\n"
            )  # last: it says that all is there
        return True

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Environment steps of the evaluations, and the mean return of each seed in each of them."""
        with self.curve_file.open() as file:
            rows = list(csv.DictReader(file))
        seeds = sorted({int(row["seed"]) for row in rows})
        of_seed = [[row for row in rows if int(row["seed"]) == seed] for seed in seeds]
        steps = np.array([int(row["env_steps"]) for row in of_seed[0]])
        return steps, np.array([[float(row["return_mean"]) for row in one] for one in of_seed])

    def last(self) -> str:
        """The interquartile mean at the end, and its interval."""
        _, middle, (low, high) = self.interquartile_curve
        return f"{middle[-1]:.1f} [{low[-1]:.1f}, {high[-1]:.1f}]"

    @functools.cached_property
    def interquartile_curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Environment steps of the evaluations of a finished cell, and what [`interquartile_means`][] says of them."""
        steps, returns = self.curve()
        return steps, *interquartile_means(returns)


def interquartile_means(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interquartile mean over seeds at each evaluation, and its 95 % bootstrap interval (rliable)."""

    def aggregate(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(scores[..., index]) for index in range(scores.shape[-1])])

    np.random.seed(0)  # noqa: NPY002 (rliable draws from it), so that the same curves say the same again
    points, intervals = library.get_interval_estimates({"": scores[:, None, :]}, aggregate, reps=1000)
    return points[""], intervals[""]


def figure(cells: list[Cell]) -> bytes:
    """Learning curves as a PNG: a panel for each task, a line for each method."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    picture = matplotlib.figure.Figure(figsize=(4.6 * len(tasks), 3.8), layout="constrained")
    panels = picture.subplots(1, len(tasks), squeeze=False)[0]
    lines = {}
    for axes, task in zip(panels, tasks, strict=True):
        here = [cell for cell in cells if cell.task == task]
        for cell in here:
            steps, middle, interval = cell.interquartile_curve
            colour = COLOURS.get(cell.method)
            style = "--" if cell.method in DASHED else "-"
            (lines[cell.method],) = axes.plot(steps, middle, style, color=colour, linewidth=1.8, label=cell.method)
            axes.fill_between(steps, *interval, color=lines[cell.method].get_color(), alpha=0.15, linewidth=0)
        seeds = sorted({cell.summary()["seeds"] for cell in here})
        axes.set_title(f"{task} ({' or '.join(map(str, seeds))} seeds)", loc="left")
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.set_xlim(0, None)
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), None)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return, interquartile mean")
    picture.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return png(picture)


def paper_return(cell: Cell, steps: int) -> str:
    """What the paper reports of this task and method after as many environment steps, or nothing."""
    budgets = {60_000_000: "return_60M", 120_000_000: "return_120M", 180_000_000: "return_180M_mean"}
    near = [column for budget, column in budgets.items() if abs(steps - budget) <= 0.05 * budget]
    with PAPER_RETURNS.open() as file:
        for row in csv.DictReader(file):
            name = PAPER_NAMES.get(cell.method, cell.method)
            if near and (row["task"], row["method"]) == (cell.task, name) and row[near[0]]:
                return row[near[0]]
    return ""


def table(cells: list[Cell]) -> None:
    """A row for each cell."""
    shown = rich.table.Table(title="return: interquartile mean over seeds", title_justify="left")
    columns = (
        "task",
        "method",
        "seeds",
        "env steps",
        "last [95 % interval]",
        "best",
        "last / best",
        "kept",
        "paper",
        "min",
    )
    for column in columns:
        shown.add_column(column, justify="left" if column in ("task", "method") else "right", no_wrap=True)
    for cell in cells:
        steps, middle, _ = cell.interquartile_curve
        summary = cell.summary()
        kept = metrics.aggregate_iqm(np.array(list(summary["best_policy_return"].values())))
        shown.add_row(
            cell.task,
            cell.method,
            str(summary["seeds"]),
            f"{steps[-1]:,}",
            cell.last(),
            f"{middle.max():.1f}",
            f"{middle[-1] / middle.max():.0%}",
            f"{kept:.1f}",
            paper_return(cell, int(steps[-1])),
            f"{summary['wall_seconds'] / 60:.1f}",
        )
    console.print(shown)


def markdown(cells: list[Cell]) -> str:
    """The returns at the end, as the README shows them: a row for each method, a column for each task."""
    last = {(cell.task, cell.method): cell.last() for cell in cells}
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*last, strict=True))
    rows = [["`--method`", *tasks], ["---", *["--:"] * len(tasks)]]
    rows += [[f"`{method}`", *(last.get((task, method), "") for task in tasks)] for method in methods]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; may be given several times.")] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="A method; all of them by default.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds in each cell.")] = 5,
    scale: Annotated[str, typer.Option(help="The preset: laptop or paper.")] = "laptop",
    minutes: Annotated[float, typer.Option(help="Stop after this long; what is unfinished then is left out.")] = float(
        "inf"
    ),
    out: Annotated[pathlib.Path, typer.Option(help="Where the results go.")] = RESULTS,
    show: Annotated[bool, typer.Option("--show", help="Run nothing: show what is finished.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Show it as the README does.")] = False,
) -> None:
    """Runs the cells that are not finished yet, and shows all that are."""
    deadline = time.monotonic() + 60 * minutes
    cells = [
        Cell(scale, task, method, seeds, out / scale)
        for task in tasks or ["PointMass"]
        for method in methods or list(gorl.methods())
    ]
    for cell in [] if show else cells:
        if cell.is_finished():
            continue
        console.print(f"[bold]{cell.method} on {cell.task}")
        if not cell.run(deadline):
            console.print(f"out of time at {cell.method} on {cell.task}")
            break
    finished = [cell for cell in cells if cell.is_finished()]
    left = [f"{cell.method} on {cell.task}" for cell in cells if cell not in finished]
    if finished:
        print(markdown(finished)) if as_markdown else table(finished)
        gorl.internal.write_whole(out / scale / "returns.png", figure(finished))
    if left:
        console.print(f"not finished: {', '.join(left)}; run the same command again to go on")


if __name__ == "__main__":
    typer.run(main)
