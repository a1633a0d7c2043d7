"""What is seen while a run goes on: a live bar in a terminal, plain lines anywhere else."""

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import rich.progress

import gorl

from ._say import plain_console

_DOING = {
    gorl.Phase.LEARN: "learning",
    gorl.Phase.EVALUATE: "evaluating",
    gorl.Phase.REFINE: "refining the decoder",
}
_COMPILING = "compiling, once"


class Progress:
    """Follows a run from chunk to chunk.

    **Arguments:**

    - `config`: what is being trained.
    - `title`: what it is called.
    - `names`: those of the runs that train side by side.
    """

    def __init__(self, config: gorl.Config, title: str, names: Sequence[str]):
        self._config = config
        self._title = title
        self._names = names
        self._diverged: set[int] = set()
        self._seen: set[gorl.Phase] = set()
        self._phases = [gorl.Phase(int(phase)) for phase in gorl.make_schedule(config).steps.phase]
        self._iterations = sum(config.stage_iterations)
        self._seconds: dict[gorl.Phase, list[float]] = {phase: [] for phase in gorl.Phase}
        self._return = float("nan")
        self._console = plain_console()
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("stage {task.fields[stage]} of {task.fields[stages]}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[figures]}"),
            rich.progress.TextColumn("[dim]{task.description}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "Progress":
        config = self._config
        self._say(
            f"{self._title}, {config.num_stages} stage{'s' * (config.num_stages > 1)}, "
            f"{self._iterations * config.steps_per_iteration:,} env steps per seed"
        )
        if not self._console.is_terminal:
            self._say(_COMPILING)
        self._bar.start()
        self._task = self._bar.add_task(
            _COMPILING, total=len(self._phases), stage=0, stages=config.num_stages, figures=""
        )
        self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: gorl.ScheduleStep, state: gorl.TrainState) -> None:
        """Takes note that a chunk is done, and shows where the run is."""
        now = time.monotonic()
        phase, index = gorl.Phase(int(step.phase)), int(step.index)
        seconds = now - self._last
        # The first of a phase waits for its program. That of a refinement was made while there was learning to do.
        if phase in self._seen or phase == gorl.Phase.REFINE:
            self._seconds[phase].append(seconds)
        self._last = now
        self._seen.add(phase)
        if phase == gorl.Phase.EVALUATE and not step.is_final:
            self._return = finite_mean(np.mean(state.returns[:, int(step.evaluation)], axis=1))
            self._say(f"stage {int(step.stage)}  {self._figures(step)}", in_terminal=False)
        if phase == gorl.Phase.REFINE:
            fit = state.fits
            stage = int(step.stage)
            self._say(
                f"stage {stage}  decoder refined in {seconds:.0f} s, "
                f"{np.mean(fit.num_epochs[:, stage]):.0f} epochs, "
                f"held-out loss {np.mean(fit.validation_loss[:, stage]):.3f}"
            )
        for index in np.flatnonzero(np.asarray(state.diverged_at) >= 0).tolist():
            if index not in self._diverged:
                self._diverged.add(index)
                steps = int(state.diverged_at[index]) * self._config.steps_per_iteration
                why = gorl.Divergence(int(state.divergence[index])).description
                self._say(f"{self._names[index]} diverged at {steps:,} env steps: {why}")
        following = self._phases[index + 1 : index + 2]
        self._bar.update(
            self._task,
            completed=index + 1,
            stage=int(step.stage),
            figures=self._figures(step),
            description=self._doing(following[0]) if following else "done",
        )

    def _doing(self, phase: gorl.Phase) -> str:
        return _COMPILING if phase == gorl.Phase.LEARN and phase not in self._seen else _DOING[phase]

    def _figures(self, step: gorl.ScheduleStep) -> str:
        steps = int(step.iterations) * self._config.steps_per_iteration
        parts = [f"{steps:>11,} env steps"]
        learning = self._seconds[gorl.Phase.LEARN][-20:]
        if learning:
            rate = len(self._names) * self._config.steps_per_iteration * len(learning) / sum(learning)
            parts.append(f"{rate:>9,.0f} steps/s")
        if np.isfinite(self._return):
            parts.append(f"return {self._return:>7.1f}")
        if learning:
            parts.append(f"{_clock(self._time_left(int(step.index)))} left")
        return "  ".join(parts)

    def _time_left(self, index: int) -> float:
        """From what the latest chunks of each phase took. A phase that has not been seen yet counts as nothing."""
        left = 0.0
        for phase in self._phases[index + 1 :]:
            latest = self._seconds[phase][-20:]
            left += sum(latest) / len(latest) if latest else 0.0
        return left

    def _say(self, line: str, in_terminal: bool = True) -> None:
        if in_terminal or not self._console.is_terminal:
            with contextlib.suppress(OSError):  # a log on a full disk is no reason to end a run
                self._console.print(line, soft_wrap=True)


def finite_mean(values: np.ndarray) -> float:
    """The mean of the values that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
