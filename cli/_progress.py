"""The progress of a run: a live bar in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Sequence

import numpy as np
import rich.progress

import gorl

from ._process import plain_console, plural

_DOING = {
    gorl.Phase.LEARN: "learning",
    gorl.Phase.EVALUATE: "evaluating",
    gorl.Phase.REFINE: "refining the decoder",
}
_COMPILING = "compiling, once"
_LATEST = 20  # steps of a phase from which its speed is estimated


class Progress:
    """Shows the progress of a run under a title, with a name for each seed. A context manager."""

    def __init__(self, config: gorl.Config, title: str, names: Sequence[str]):
        self._config = config
        self._title = title
        self._names = names
        self._diverged: set[int] = set()
        self._seen: set[gorl.Phase] = set()
        self._phases = [gorl.Phase(int(phase)) for phase in gorl.make_schedule(config).steps.phase]
        self._seconds: dict[gorl.Phase, list[float]] = {phase: [] for phase in gorl.Phase}
        self._return = float("nan")
        self._console = plain_console()
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("stage {task.fields[stage]} of {task.fields[stages]}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[metrics]}"),
            rich.progress.TextColumn("[dim]{task.description}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "Progress":
        config = self._config
        steps = sum(config.stage_iterations) * config.steps_per_iteration
        self._print(f"{self._title}, {plural(config.num_stages, 'stage')}, {steps:,} env steps per seed")
        if not self._console.is_terminal:
            self._print(_COMPILING)
        self._bar.start()
        self._task = self._bar.add_task(
            _COMPILING, total=len(self._phases), stage=0, stages=config.num_stages, metrics=""
        )
        self._last = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: gorl.ScheduleStep, state: gorl.TrainState) -> None:
        """Shows that a step of the schedule is done."""
        now = time.monotonic()
        phase, stage, index = gorl.Phase(int(step.phase)), int(step.stage), int(step.index)
        seconds = now - self._last
        # The first step of a phase waits for its program, unless that was compiled while the run learned.
        if phase in self._seen or phase == gorl.Phase.REFINE:
            self._seconds[phase].append(seconds)
        self._last = now
        self._seen.add(phase)
        if phase == gorl.Phase.EVALUATE and not step.is_final:
            self._return = finite_mean(np.mean(state.returns[:, int(step.evaluation)], axis=1))
            self._print(f"stage {stage}  {self._metrics(step, state)}", in_terminal=False)
        if phase == gorl.Phase.REFINE:
            self._print(
                f"stage {stage}  decoder refined in {seconds:.0f} s, "
                f"{np.mean(state.fits.num_epochs[:, stage]):.0f} epochs, "
                f"held-out loss {np.mean(state.fits.validation_loss[:, stage]):.3f}"
            )
        for seed in np.flatnonzero(np.asarray(state.diverged_at) >= 0).tolist():
            if seed not in self._diverged:
                self._diverged.add(seed)
                steps = int(state.diverged_at[seed]) * self._config.steps_per_iteration
                why = gorl.Divergence(int(state.divergence[seed])).description
                self._print(f"{self._names[seed]} diverged at {steps:,} env steps: {why}")
        following = self._phases[index + 1 : index + 2]
        self._bar.update(
            self._task,
            completed=index + 1,
            stage=stage,
            metrics=self._metrics(step, state),
            description=self._doing(following[0]) if following else "done",
        )

    def _doing(self, phase: gorl.Phase) -> str:
        return _COMPILING if phase == gorl.Phase.LEARN and phase not in self._seen else _DOING[phase]

    def _metrics(self, step: gorl.ScheduleStep, state: gorl.TrainState) -> str:
        steps = int(np.max(state.iterations)) * self._config.steps_per_iteration
        parts = [f"{steps:>11,} env steps"]
        learning = self._seconds[gorl.Phase.LEARN][-_LATEST:]
        if learning:
            rate = len(self._names) * self._config.steps_per_iteration * len(learning) / sum(learning)
            parts.append(f"{rate:>9,.0f} steps/s")
        if np.isfinite(self._return):
            parts.append(f"return {self._return:>7.1f}")
        if learning:
            parts.append(f"{_clock(self._time_left(int(step.index)))} left")
        return "  ".join(parts)

    def _time_left(self, index: int) -> float:
        """An estimate from the latest steps of each phase. A phase that has not come yet counts as nothing."""
        latest = {phase: seconds[-_LATEST:] for phase, seconds in self._seconds.items()}
        means = {phase: sum(seconds) / max(1, len(seconds)) for phase, seconds in latest.items()}
        return sum(means[phase] for phase in self._phases[index + 1 :])

    def _print(self, line: str, in_terminal: bool = True) -> None:
        if in_terminal or not self._console.is_terminal:
            with contextlib.suppress(OSError):  # a log on a full disk is no reason to end a run
                self._console.print(line, soft_wrap=True)


def finite_mean(values: np.ndarray) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
