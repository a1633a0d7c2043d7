"""`--log`: loggers besides the files of a run."""

import abc
import contextlib
import importlib.util
from collections.abc import Iterator, Sequence

import gorl

from ._process import say
from ._run import Run

Row = dict[str, float | int | str]
_NO_METRICS = frozenset(("seed", "stage", "env_steps", "wall_seconds", "diverged_at", "divergence"))


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
            writer.close()


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


# The class of each logger, and the package that it needs.
_LOGGERS: dict[str, tuple[type[AbstractLogger], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WeightsAndBiases, "wandb"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Checks that the loggers exist and are installed."""
    for name in names:
        if name not in _LOGGERS:
            raise gorl.internal.unknown_name("logger", name, _LOGGERS)
        package = _LOGGERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise gorl.InputError(f"--log {name} needs {package}, which is not installed: pip install 'gorl[{name}]'.")


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
        except OSError as error:
            self._open.pop(name, None)
            say(f"--log {name} could not be written ({error.strerror}): the run goes on without it")


def _metrics(row: Row) -> dict[str, float]:
    return {name: float(metric) for name, metric in row.items() if name not in _NO_METRICS}
