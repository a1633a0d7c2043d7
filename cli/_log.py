"""Loggers that people use beside the files of a run."""

import abc
import contextlib
import importlib.util
from collections.abc import Iterator, Sequence

import gorl

from ._directory import Run
from ._say import say

Row = dict[str, float | int | str]
_WHAT_A_ROW_IS_OF = frozenset(("seed", "stage", "env_steps", "wall_seconds", "diverged_at", "divergence"))


class AbstractLogger(abc.ABC):
    """Where figures go as they come. A new one is a subclass of this and an entry in `_LOGGERS`."""

    @abc.abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Takes the rows of one evaluation, one of each seed, as `curve.csv` has them."""

    @abc.abstractmethod
    def close(self) -> None:
        """Sees to it that everything has arrived."""


class TensorBoard(AbstractLogger):
    """Event files in `tensorboard/` in the run's directory, one series for each seed."""

    def __init__(self, run: Run):
        from tensorboardX import SummaryWriter

        # A run that goes on has every row again: TensorBoard drops what an earlier process has logged. The queue has no
        # limit, because the thread that empties it ends where it cannot write, and a full queue would block for ever.
        self._writers = {
            seed: SummaryWriter(str(run.directory / "tensorboard" / f"seed_{seed}"), purge_step=0, max_queue=0)
            for seed in run.seed_numbers
        }

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            writer = self._writers[row["seed"]]  # pyright: ignore[reportArgumentType]
            for name, figure in _figures(row).items():
                writer.add_scalar(name, figure, int(row["env_steps"]))
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases(AbstractLogger):
    """One run of Weights & Biases with a group of figures for each seed. `WANDB_MODE=offline` works."""

    def __init__(self, run: Run):
        import json

        import wandb

        self._wandb = wandb.init(
            project="gorl",
            name=run.directory.name,
            id=run.identifier,
            resume="allow",
            dir=run.directory,
            config={"method": run.method, "seeds": list(run.seed_numbers), **json.loads(run.config.to_json())},
        )
        self._wandb.define_metric("env_steps")
        self._wandb.define_metric("*", step_metric="env_steps")

    def write(self, rows: Sequence[Row]) -> None:
        figures = {f"seed_{row['seed']}/{name}": figure for row in rows for name, figure in _figures(row).items()}
        self._wandb.log({"env_steps": rows[0]["env_steps"], "stage": rows[0]["stage"], **figures})

    def close(self) -> None:
        self._wandb.finish()


# Of each logger: what makes it, and the package that it takes.
_LOGGERS: dict[str, tuple[type[AbstractLogger], str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WeightsAndBiases, "wandb"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Checks that there are such loggers, and that they are installed.

    **Raises:**

    `gorl.InputError` if not.
    """
    for name in names:
        if name not in _LOGGERS:
            raise gorl.internal.unknown_name("logger", name, _LOGGERS)
        package = _LOGGERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise gorl.InputError(f"--log {name} takes {package}, which is not installed: pip install 'gorl[{name}]'.")


class Loggers:
    """The loggers of a run. One that cannot write is left out from then on: a log is no reason to lose a run.

    **Arguments:**

    - `run`: the run.
    - `rows`: as far as it has come.
    """

    def __init__(self, run: Run, rows: Sequence[Row]):
        self._open: dict[str, AbstractLogger] = {}
        for name in dict.fromkeys(run.log):
            with self._spared(name):
                self._open[name] = _LOGGERS[name][0](run)  # pyright: ignore[reportCallIssue]
        for begin in range(0, len(rows), run.seeds):
            self.write(rows[begin : begin + run.seeds])

    def write(self, rows: Sequence[Row]) -> None:
        """Takes the rows of one evaluation, one of each seed."""
        for name, logger in list(self._open.items()):
            with self._spared(name):
                logger.write(rows)

    def close(self) -> None:
        """Sees to it that everything has arrived."""
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


def _figures(row: Row) -> dict[str, float]:
    return {name: float(figure) for name, figure in row.items() if name not in _WHAT_A_ROW_IS_OF}
