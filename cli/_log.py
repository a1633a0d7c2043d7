"""`--log`: loggers besides the files of a run."""

import abc
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gorl

from ._process import check_packages, say
from ._report import PACKAGES, write_page
from ._run import NO_METRICS, Run

_REPORT_INTERVAL = 30.0  # seconds between two pages, each of which is a file of megabytes
Row = dict[str, float | int | str]


class AbstractLogger(abc.ABC):
    """Takes metrics as they come. A new logger is a subclass, and an entry in `_LOGGERS`."""

    @abc.abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Takes the rows of one evaluation, one for each seed, as in `curve.csv`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Writes what is left to write."""


class TensorBoard(AbstractLogger):
    """Writes event files to `tensorboard/` in the run's directory, with a series for each seed."""

    def __init__(self, run: Run):
        from tensorboardX import SummaryWriter

        # A resumed run writes all its rows again, and `purge_step` drops those of earlier processes. The queue has no
        # limit: the thread that empties it ends when it cannot write, and a full queue would then block for ever.
        self._writers = {
            seed: SummaryWriter(str(run.directory / "tensorboard" / f"seed_{seed}"), purge_step=0, max_queue=0)
            for seed in run.seed_numbers
        }

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            writer = self._writers[row["seed"]]  # pyright: ignore[reportArgumentType]
            for name, metric in _metrics(row).items():
                writer.add_scalar(name, metric, int(row["env_steps"]))
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            file_writer: Any = writer.file_writer
            events = file_writer.event_writer._event_queue
            writer.close()
            # If the thread that empties it has ended, the process would wait for it for ever when it ends itself.
            events.cancel_join_thread()


class WeightsAndBiases(AbstractLogger):
    """Makes a run of Weights & Biases, with a group of metrics for each seed. `WANDB_MODE=offline` works."""

    def __init__(self, run: Run):
        import json

        import wandb

        self._wandb = wandb.init(
            project="gorl",
            name=run.directory.name,
            id=run.identifier,
            resume="allow",
            reinit="create_new",  # the runs of a sweep log side by side
            dir=run.directory,
            config={"method": run.method, "seeds": list(run.seed_numbers), **json.loads(run.config.to_json())},
        )
        self._wandb.define_metric("env_steps")
        self._wandb.define_metric("*", step_metric="env_steps")

    def write(self, rows: Sequence[Row]) -> None:
        metrics = {f"seed_{row['seed']}/{name}": metric for row in rows for name, metric in _metrics(row).items()}
        self._wandb.log({"env_steps": rows[0]["env_steps"], "stage": rows[0]["stage"], **metrics})

    def close(self) -> None:
        self._wandb.finish()


class Report(AbstractLogger):
    """Keeps `report.html` in the run's directory fresh. It is made from the files of the run, not from the rows."""

    def __init__(self, run: Run):
        self._run, self._last, self._is_first = run, time.monotonic(), True
        write_page(run, is_training=True, is_quick=True)
        say(f"--report: {run.report_file}")

    def write(self, rows: Sequence[Row]) -> None:
        if self._is_first or time.monotonic() - self._last >= _REPORT_INTERVAL:
            self._is_first = False
            self._last = time.monotonic()
            write_page(self._run, is_training=True, is_quick=True)

    def close(self) -> None:
        # A run at its end is about to get its film, and the page is still to load itself again.
        write_page(self._run, is_training=self._run.is_at_end, is_quick=True)


# The class of each logger, and the packages that it needs.
_LOGGERS: dict[str, tuple[type[AbstractLogger], tuple[str, ...]]] = {
    "tensorboard": (TensorBoard, ("tensorboardX",)),
    "wandb": (WeightsAndBiases, ("wandb",)),
    "report": (Report, PACKAGES),
}


def check_loggers(names: Sequence[str]) -> None:
    """Checks that the loggers exist and are installed."""
    for name in names:
        if name not in _LOGGERS:
            raise gorl.internal.unknown_name("logger", name, _LOGGERS)
        option = "--report" if name == "report" else f"--log {name}"
        check_packages(option, name, _LOGGERS[name][1])


class Loggers:
    """The loggers of a run with some rows so far. One that fails to write is dropped, since the run matters more."""

    def __init__(self, run: Run, rows: Sequence[Row]):
        self._open: dict[str, AbstractLogger] = {}
        for name in dict.fromkeys(run.log):
            with self._spared(name):
                self._open[name] = _LOGGERS[name][0](run)  # pyright: ignore[reportCallIssue]
        for begin in range(0, len(rows), run.seeds):
            self.write(rows[begin : begin + run.seeds])

    def write(self, rows: Sequence[Row]) -> None:
        """Takes the rows of one evaluation, one for each seed."""
        for name, logger in list(self._open.items()):
            with self._spared(name):
                logger.write(rows)

    def close(self) -> None:
        """Writes what is left to write."""
        for name, logger in list(self._open.items()):
            with self._spared(name):
                logger.close()

    @contextlib.contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, gorl.InputError) as error:
            self._open.pop(name, None)
            why = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
            say(f"--log {name} could not be written ({why}): the run goes on without it")


def finish_report(run: Run) -> None:
    """Adds to the page of `--report`, if there is one, what only a finished run has: its film and its actions."""
    if "report" in run.log:
        try:
            write_page(run)
        except (OSError, gorl.InputError) as error:
            say(f"--report: the page lacks the end of the run ({error}): make it again with gorl report")


def _metrics(row: Row) -> dict[str, float]:
    return {name: float(metric) for name, metric in row.items() if name not in NO_METRICS}
