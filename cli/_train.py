"""`gorl train` and `gorl resume`: the loop over chunks, and what it leaves in the run's directory."""

import contextlib
import csv
import dataclasses
import functools
import io
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import gorl

from ._directory import Run, check_new, check_seeds, make_directory, versions
from ._log import Loggers, Row, check_loggers
from ._place import GoneError, advice
from ._plot import RunCurve, encode, learning_curves
from ._progress import Progress
from ._say import as_json, command, say
from ._show import summary
from ._stop import Stop

DIVERGED = 3  # the exit code of a run in which the numbers of a seed stopped being finite
_TRY_AGAIN = "the run goes on, and tries again later"


def begin(run: Run, is_named: bool) -> int:
    """Trains all seeds of a new run in one vmapped run, shows how it goes, and writes the results.

    **Arguments:**

    - `run`: the run.
    - `is_named`: whether somebody asked for its directory, rather than for a new one.

    **Returns:**

    The exit code of the process.

    **Raises:**

    `gorl.InputError` for bad input, before anything is compiled or written.
    """
    check_seeds(run.first_seed, run.seeds)
    if not run.checkpoint_interval >= 0:
        raise gorl.InputError(f"--checkpoint-every must be at least 0 seconds, not {run.checkpoint_interval:g}.")
    check_loggers(run.log)
    run.config.to_json()  # says so if it cannot be written
    check_new(run.directory, is_named)
    chunks = gorl.iterate(run.config, run.keys)  # checks the rest of the input
    run = dataclasses.replace(run, directory=make_directory(run.directory, is_named))
    with run.writing():
        check_new(run.directory, is_named=True)  # another process may have been there meanwhile
        run.create()
        return _follow(run, chunks, None, {})


def resume(directory: pathlib.Path, total_steps: int | None = None) -> int:
    """Goes on with a run that was stopped, from its newest checkpoint that is whole, or beyond its end.

    **Arguments:**

    - `directory`: of the run.
    - `total_steps`: environment steps of each seed when it is finished; `None` for as many as it has.

    **Returns:**

    The exit code of the process.

    **Raises:**

    `gorl.InputError` if there is no run, or it cannot go on; then nothing is compiled or written.
    """
    run = Run.open(directory)
    check_loggers(run.log)
    config = run.config if total_steps is None else gorl.lengthen(run.config, total_steps)
    if run.is_finished and config == run.config:
        raise gorl.InputError(
            f"the run in {directory} is finished: give --steps, and more of them than its "
            f"{sum(run.config.stage_steps):,}, to go on."
        )
    with run.writing():
        run.clean()
        restored = run.restore()
        if restored is None and run.is_finished:
            raise gorl.InputError(
                f"the run in {directory} is finished and has no checkpoint any more, so it cannot get longer: begin a "
                f"new one with --steps {total_steps}."
            )
        if restored is None:
            say(f"{directory} has no checkpoint yet: the run begins")
            state, note = None, {}
        else:
            state, note = restored
            before, now = note["versions"], versions()
            changed = [f"{name} was {before[name]} and is {now[name]}" for name in now if before.get(name) != now[name]]
            if changed:
                say(f"it will not be the same bit for bit as if it had not been stopped: {', '.join(changed)}")
        if config != run.config and state is not None:
            state = gorl.extend(run.config, state, config)
        chunks = gorl.iterate(config, run.keys if state is None else state)  # checks that it can go on
        run = run if config == run.config else run.lengthen(config)
        return _follow(run, chunks, state, note)


def _follow(
    run: Run,
    chunks: Iterator[tuple[gorl.ScheduleStep, gorl.TrainState]],
    state: gorl.TrainState | None,
    note: dict[str, Any],
) -> int:
    """Goes through the chunks that are left, as long as the run is where it was."""
    try:
        return _go_through(run, chunks, state, note)
    except GoneError:
        say(
            f"{run.directory} has been moved, deleted or replaced, so the run stops. What it did since its newest "
            "checkpoint is lost. If it was moved, go on with gorl resume and the directory that it is in now; if it "
            "was deleted, begin a new run"
        )
        return 1


def _go_through(
    run: Run,
    chunks: Iterator[tuple[gorl.ScheduleStep, gorl.TrainState]],
    state: gorl.TrainState | None,
    note: dict[str, Any],
) -> int:
    """Goes through the chunks that are left, and writes what has to be written on the way."""
    config, directory, place = run.config, run.directory, run.place
    seconds_before, wall_seconds = note.get("seconds", 0.0), list(note.get("wall_seconds", ()))
    began = last_saved = time.monotonic()
    is_saved = state is not None

    def clock() -> float:
        return seconds_before + time.monotonic() - began

    def save(state: gorl.TrainState, then: str = _TRY_AGAIN) -> bool:
        """Writes a checkpoint. Where that fails the run is still sound, so it goes on and tries again."""
        nonlocal last_saved
        last_saved = time.monotonic()
        note = {"seconds": clock(), "wall_seconds": wall_seconds, "versions": versions()}
        return place.try_to_write("no checkpoint", lambda: run.save(state, note), then)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop("gorl: stopping after this chunk, and saving; once more to stop at once"))
        loggers = Loggers(run, [] if state is None else curve_rows(config, run.seed_numbers, state, wall_seconds))
        stack.callback(loggers.close)
        title = f"{run.method} on {config.env}: {run.seeds} seed{'s' * (run.seeds > 1)}"
        progress = stack.enter_context(Progress(config, title, [f"seed {seed}" for seed in run.seed_numbers]))
        for step, state in chunks:
            jax.block_until_ready(state.index)
            is_saved = False
            if step.phase != gorl.Phase.EVALUATE:  # until something is learned, nothing is lost by stopping at once
                stop.heed()
            progress.advance(step, state)
            if step.phase == gorl.Phase.EVALUATE and not step.is_final:
                wall_seconds.append(round(clock(), 3))
                rows = curve_rows(config, run.seed_numbers, state, wall_seconds)
                write = functools.partial(gorl.internal.write_whole, run.curve_file, table(rows))
                place.try_to_write("no curve.csv", write, _TRY_AGAIN)
                loggers.write(rows[-run.seeds :])
            if stop.exit_code is not None or time.monotonic() - last_saved >= run.checkpoint_interval:
                is_saved = save(state)
            if stop.exit_code is not None:
                break
    if stop.exit_code is not None:
        kept = "stopped" if is_saved else "stopped, and the last chunks could not be saved"
        say(f"{kept}; go on with: {command('gorl', 'resume', directory)}")
        return stop.exit_code
    assert state is not None
    if not is_saved:
        save(state, "gorl resume --steps would go on from the one before")
    result = gorl.finish(config, state)
    try:
        place.check()
        gorl.internal.write_whole(run.curve_file, table(curve_rows(config, run.seed_numbers, state, wall_seconds)))
        gorl.save_policy(run.policies_file, result.policy, config)
        figure = learning_curves([curve_of(run, result)], title=f"{run.method} on {config.env}")
        gorl.internal.write_whole(run.picture_file, encode(figure, ".png"))
        gorl.internal.write_whole(run.summary_file, _summary(run, result, clock()))
    except OSError as error:
        place.check()
        why = f"the results could not be written to {directory} ({error.strerror})"
        say(f"{why}: {advice(error)}, and {command('gorl', 'resume', directory)}")
        return 1
    run.keep_newest_checkpoint()
    with contextlib.suppress(OSError):  # everything is in the directory, whether it can be shown or not
        summary(run, result, clock())
    return DIVERGED if np.any(result.diverged_at >= 0) else 0


def curve_rows(
    config: gorl.Config, seeds: Sequence[int], state: gorl.TrainState, wall_seconds: list[float]
) -> list[Row]:
    """The rows of `curve.csv`: one of each seed for each evaluation so far, but for that of the best policy."""
    points = gorl.make_schedule(config).curve
    returns, diverged_at = np.asarray(state.returns), np.asarray(state.diverged_at)
    divergence = [gorl.Divergence(kind).name.lower() for kind in np.asarray(state.divergence).tolist()]
    metrics = {name: np.asarray(metric) for name, metric in state.metrics.items()}
    rows: list[Row] = []
    for evaluation, seconds in enumerate(wall_seconds):
        iterations = int(points.iterations[evaluation])
        for index, seed in enumerate(seeds):
            of_seed, at = returns[index, evaluation], diverged_at[index]
            has_diverged = 0 <= at <= iterations
            rows.append(
                {
                    "seed": seed,
                    "stage": int(points.stage[evaluation]),
                    "env_steps": iterations * config.steps_per_iteration,
                    "wall_seconds": seconds,
                    "return_mean": float(of_seed.mean()),
                    "return_std": float(of_seed.std()),
                    "return_min": float(of_seed.min()),
                    "return_max": float(of_seed.max()),
                    "diverged_at": int(at) * config.steps_per_iteration if has_diverged else "",
                    "divergence": divergence[index] if has_diverged else "",
                    **{name: float(values[index, evaluation]) for name, values in metrics.items()},
                }
            )
    return rows


def table(rows: list[Row]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def curve_of(run: Run, result: gorl.Result) -> RunCurve:
    """The learning curve of a run, to be drawn."""
    curve = result.curve
    return RunCurve(run.method, curve.env_steps[0], np.asarray(curve.stage[0]), np.asarray(curve.mean_return))


def _summary(run: Run, result: gorl.Result, wall_seconds: float) -> str:
    returns = np.asarray(result.returns)
    diverged_at = np.asarray(result.diverged_at, np.int64) * run.config.steps_per_iteration
    content = {
        "method": run.method,
        "env_steps": run.env_steps,
        "best_policy_return": {
            str(seed): float(of_seed.mean()) for seed, of_seed in zip(run.seed_numbers, returns, strict=True)
        },
        "best_policy_return_mean": float(returns.mean()),
        "episodes_per_seed": returns.shape[1],
        "diverged_at": {str(seed): int(at) for seed, at in zip(run.seed_numbers, diverged_at, strict=True) if at >= 0},
        "divergence": {
            str(seed): gorl.Divergence(kind).name.lower()
            for seed, kind in zip(run.seed_numbers, np.asarray(result.divergence).tolist(), strict=True)
            if kind != gorl.Divergence.NONE
        },
        "wall_seconds": round(wall_seconds, 1),
        "device": str(jax.devices()[0]),
        "versions": versions(),
    }
    return as_json(content)
