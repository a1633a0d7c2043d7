"""`gorl sweep`: a directory with a run for each setting, and a table and a picture that compare them."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

import gorl

from ._figures import encode, learning_curves
from ._plot import run_curve
from ._process import command, plain_console, plural
from ._progress import finite_mean
from ._run import SWEEP, TUNE, Run, damaged, read_description, write_description
from ._settings import Trial
from ._tables import new_table
from ._train import Job, OneRun, by_structure, table

_DRAWN = 8  # runs in the picture
_NAME = 80  # characters of a setting in the name of its directory


@final
@dataclasses.dataclass(frozen=True)
class Sweep(Job):
    """The runs of `gorl sweep`. Each is like one of `gorl train`, in a directory of its own.

    **Arguments:**

    - `values`: for each run, the values of the fields that differ between runs, as a person typed them.
    - `texts`: everything that `--set` gave.
    - `options`: the other options that `gorl train` needs to train one of them.
    - `seconds`: what all of it took; `None` to take it from the runs, which trained side by side where they could.
    """

    values: Mapping[str, Mapping[str, str]]
    texts: Mapping[str, str]
    options: Sequence[str]
    seconds: float | None = None

    @staticmethod
    def of(
        directory: pathlib.Path, trials: Sequence[Trial], run: Run, texts: Mapping[str, str], options: Sequence[str]
    ) -> "Sweep":
        """A new sweep with a run for each trial. All but the config and the directory is that of `run`."""
        runs = {}
        for index, trial in enumerate(trials):
            words = re.sub(r"[^\w.=+-]+", "-", trial.name)[:_NAME]
            place = directory / "-".join(filter(None, (f"{index:0{len(str(len(trials) - 1))}}", words)))
            runs[trial.name] = dataclasses.replace(
                run, directory=place, config=trial.config, identifier=uuid.uuid4().hex
            )
        return Sweep(directory, runs, {trial.name: trial.values for trial in trials}, texts, options)

    @staticmethod
    def open(directory: pathlib.Path) -> "Sweep":
        """The sweep in a directory."""
        content = read_description(directory, SWEEP)
        try:
            names = {str(name): directory / str(place) for name, place in content["runs"].items()}
            values, texts, options = content["values"], content["set"], content["options"]
        except (AttributeError, KeyError, TypeError) as error:
            raise damaged(directory / SWEEP) from error
        return Sweep(directory, {name: Run.open(place) for name, place in names.items()}, values, texts, options)

    def write(self) -> None:
        """Writes which runs there are."""
        content = {
            "set": self.texts,
            "options": self.options,
            "values": self.values,
            "runs": {name: run.directory.name for name, run in self.runs.items()},
        }
        write_description(self.directory / SWEEP, content)

    def create(self) -> None:
        try:
            for run in self.runs.values():
                run.create()
            self.write()
        except gorl.InputError:
            for run in self.runs.values():
                shutil.rmtree(run.directory, ignore_errors=True)
            raise

    @property
    def table_file(self) -> pathlib.Path:
        """The results: a row for each setting and seed."""
        return self.directory / "sweep.csv"

    @property
    def picture_file(self) -> pathlib.Path:
        """The learning curves of the best settings."""
        return self.directory / "sweep.png"

    @property
    def is_finished(self) -> bool:
        files = (self.table_file, self.picture_file)
        return all(file.exists() for file in files) and all(run.is_finished for run in self.runs.values())

    def finish(self, results: Sequence[tuple[Run, gorl.Result, float]]) -> int:
        # An earlier process may have finished some runs, so everything comes from their files.
        summaries = {name: run.summary() for name, run in self.runs.items()}
        returns = {name: _returns(summary) for name, summary in summaries.items()}
        ranked = sorted(self.runs, key=lambda name: _rank(returns[name]), reverse=True)
        rows = [
            {
                **self.values[name],
                "seed": seed,
                "best_policy_return": of_seed,
                "diverged_at": summaries[name]["diverged_at"].get(str(seed), ""),
                "divergence": summaries[name]["divergence"].get(str(seed), ""),
                "run": run.directory.name,
            }
            for name, run in self.runs.items()
            for seed, of_seed in zip(run.seed_numbers, returns[name], strict=True)
        ]
        gorl.internal.write_whole(self.table_file, table(rows))
        gorl.internal.write_whole(self.picture_file, self._picture(ranked))
        with contextlib.suppress(OSError):  # every file is written, whether the table can be shown or not
            self._show(ranked, summaries, returns)
        return 0

    def _picture(self, ranked: Sequence[str]) -> bytes:
        best = self.runs[ranked[0]]
        curves = [run_curve(self.runs[name], name or "as it is") for name in ranked[:_DRAWN]]
        which = f", the best {_DRAWN} of {len(ranked)} settings" * (len(ranked) > _DRAWN)
        return encode(learning_curves(curves, title=f"{best.method} on {best.config.env}{which}"), ".png")

    def _show(
        self, ranked: Sequence[str], summaries: Mapping[str, Mapping[str, Any]], returns: Mapping[str, np.ndarray]
    ) -> None:
        best, values = self.runs[ranked[0]], self.values[ranked[0]]
        seeds = plural(best.seeds, "seed")
        left = (f"seeds from {best.first_seed}", "run")
        shown = new_table(
            *(*values, "mean", gorl.internal.interval(returns[ranked[0]]).name, left[0], "diverged", left[1]),
            title=f"{best.method} on {best.config.env}: return of the best policies, {seeds} each",
            left=left,
        )
        for name in ranked:
            found = gorl.internal.interval(returns[name])
            diverged = len(summaries[name]["diverged_at"])
            shown.add_row(
                *self.values[name].values(),
                f"{found.mean:.1f}",
                found.ends,
                ", ".join(f"{of_seed:.1f}" for of_seed in returns[name]),
                f"{diverged} of {best.seeds}" if diverged else "",
                self.runs[name].directory.name,
            )
        console = plain_console()
        console.print(shown)
        changes = [word for name, value in {**self.texts, **values}.items() for word in ("--set", f"{name}={value}")]
        console.print(f"the best: {command('gorl', 'train', best.config.env, *self.options, *changes)}", soft_wrap=True)
        seconds = self.seconds
        if seconds is None:
            groups = by_structure({name: run.config for name, run in self.runs.items()})
            seconds = sum(summaries[names[0]]["wall_seconds"] for names in groups)
        console.print(
            f"{seconds:.0f} s in all; {self.table_file.name}, {self.picture_file.name} and the runs are in "
            f"{self.directory}",
            soft_wrap=True,
        )


def _returns(summary: Mapping[str, Any]) -> np.ndarray:
    """The return of each seed's best policy."""
    returns = summary["best_policy_return"].values()
    return np.array([np.nan if value is None else value for value in returns], np.float64)


def _rank(returns: np.ndarray) -> float:
    mean = finite_mean(returns)
    return -np.inf if np.isnan(mean) else mean


def open_runs(directories: Sequence[pathlib.Path]) -> tuple[list[Run], dict[pathlib.Path, str]]:
    """The runs in directories of runs and of sweeps, and by its directory the setting of each run of a sweep."""
    runs: dict[pathlib.Path, Run] = {}
    settings: dict[pathlib.Path, str] = {}
    for directory in directories:
        if not (directory / SWEEP).exists():
            runs.setdefault(directory, Run.open(directory))
            continue
        for name, run in Sweep.open(directory).runs.items():
            runs.setdefault(run.directory, run)
            settings[run.directory] = " ".join(filter(None, (f"{directory.name}:" * (len(directories) > 1), name)))
    return list(runs.values()), settings


def open_job(directory: pathlib.Path, total_steps: int | None) -> Job:
    """The run or the sweep in a directory, to be resumed.

    **Arguments:**

    - `directory`: the directory.
    - `total_steps`: as for [`resume`][].
    """
    if (directory / TUNE).exists():
        raise gorl.InputError(
            f"{directory} is a study of gorl tune: go on with the same gorl tune and --out {directory}."
        )
    if (directory / SWEEP).exists():
        if total_steps is not None:
            raise gorl.InputError(
                f"{directory} is a sweep, and --steps makes a single run longer: give the directory of one of its runs."
            )
        return Sweep.open(directory)
    run = Run.open(directory)
    # A run that was finished once may get longer by itself.
    parent = directory.absolute().parent
    is_of_sweep = (parent / SWEEP).exists() and not (parent / TUNE).exists()
    if is_of_sweep and not run.policies_file.exists():
        raise gorl.InputError(
            f"the run in {directory} belongs to a sweep that is not finished: go on with "
            f"{command('gorl', 'resume', directory.parent)}."
        )
    return OneRun.of(run)
