"""`gorl sweep`: many settings of one config, as many as possible of them in one compiled run."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

import gorl

from ._directory import check_new, check_seeds, keys_of, make_directory, only_writer, versions
from ._log import Row
from ._place import GoneError, Place, advice
from ._plot import RunCurve, encode, learning_curves
from ._progress import Progress, finite_mean
from ._say import as_json, command, plain_console, say
from ._stop import Stop
from ._tails import shortest_tails
from ._train import curve_rows, table

_DRAWN = 8  # settings in the picture, the best ones


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of the config."""

    values: Mapping[str, str]  # of the fields of which several values are tried, as they were typed
    config: gorl.Config

    @property
    def name(self) -> str:
        """Says what is special about it."""
        names = shortest_tails([tuple(name.split(".")) for name in self.values])
        return ", ".join(f"{'.'.join(name)}={value}" for name, value in zip(names, self.values.values(), strict=True))


def trials(
    config: gorl.Config,
    grid: Mapping[str, str],
    change: Callable[[gorl.Config, Mapping[str, Any]], gorl.Config] = gorl.replace,
) -> list[Trial]:
    """Every combination of values.

    **Arguments:**

    - `config`: what they are set in.
    - `grid`: for each field, by dotted name, the values with commas between them; between tuples semicolons.
    - `change`: what sets values of fields in a config.

    **Raises:**

    `gorl.InputError` for a field or a value that is not possible, also together with the others.
    """
    columns = []
    for name, text in grid.items():
        is_tuple = ";" in text or isinstance(gorl.internal.parse(config, name, text.partition(",")[0].strip()), tuple)
        values = [value.strip() for value in text.split(";" if is_tuple else ",") if value.strip()]
        if not values:
            raise gorl.InputError(f"--set {name}= gives no value: write it as {name}=VALUE,VALUE.")
        columns.append(list(dict.fromkeys(values)))
    several = {name for name, values in zip(grid, columns, strict=True) if len(values) > 1}
    made = []
    for values in itertools.product(*columns):
        setting = dict(zip(grid, values, strict=True))
        changes = {name: gorl.internal.parse(config, name, value) for name, value in setting.items()}
        shown = {name: value for name, value in setting.items() if name in several}
        made.append(Trial(shown, change(config, changes)))
    return made


def sweep(
    chosen: Sequence[Trial],
    method: str,
    *,
    grid: Mapping[str, str],
    options: Sequence[str],
    seeds: int,
    first_seed: int,
    directory: pathlib.Path,
    is_named: bool,
) -> int:
    """Trains every trial with every seed, and writes and shows which is best.

    Trials that differ in numbers only are trained side by side in one vmapped run; those that differ in what decides a
    shape are compiled one after the other.

    **Arguments:**

    - `chosen`: the trials.
    - `method`: what the config is called.
    - `grid`: what they are made of, for the record.
    - `options`: what else `gorl train` takes to train one of them.
    - `seeds`, `first_seed`: of each trial.
    - `directory`: where the results go.
    - `is_named`: whether somebody asked for that directory, rather than for a new one.

    **Returns:**

    The exit code of the process.

    **Raises:**

    `gorl.InputError` for bad input, before anything is compiled or written.
    """
    check_seeds(first_seed, seeds)
    for trial in chosen:
        trial.config.to_json()  # says so if it cannot be written
    check_new(directory, is_named)
    seed_numbers = range(first_seed, first_seed + seeds)
    together: dict[object, list[Trial]] = {}
    for trial in chosen:
        together.setdefault(jax.tree.structure(trial.config), []).append(trial)
    # Every one of them is checked before the first is compiled.
    batches = [batch([trial.config for trial in group], seeds) for group in together.values()]
    runs = [
        gorl.iterate(batched, keys_of([*seed_numbers] * len(group)))
        for batched, group in zip(batches, together.values(), strict=True)
    ]
    directory = make_directory(directory, is_named)
    place = Place(directory / "sweep.json", uuid.uuid4().hex)
    groups = list(zip(batches, runs, together.values(), strict=True))
    began = time.monotonic()
    with only_writer(directory, f"--out {directory}"):
        check_new(directory, is_named=True)  # another process may have been there meanwhile
        try:
            gorl.internal.write_whole(place.mark, _description(chosen[0], method, grid, seed_numbers, place.identifier))
        except OSError as error:
            raise gorl.InputError(
                f"--out {directory} cannot be written ({error.strerror}): {advice(error)}, or give another directory."
            ) from error
        try:
            followed = _follow(method, groups, seed_numbers, place)
        except GoneError:
            say(
                f"{directory} has been moved, deleted or replaced, so the sweep stops. If it was moved, its sweep.csv "
                "has what there was until then. No sweep can be gone on with: begin a new one"
            )
            return 1
    if isinstance(followed, int):
        return followed
    done, is_written = followed
    with contextlib.suppress(OSError):  # a log on a full disk
        _show(method, done, grid, options, first_seed, time.monotonic() - began, directory)
    return 0 if is_written else 1


def _follow(
    method: str,
    groups: Sequence[tuple[gorl.Config, Iterator[tuple[gorl.ScheduleStep, gorl.TrainState]], Sequence[Trial]]],
    seed_numbers: Sequence[int],
    place: Place,
) -> tuple[list[tuple[Trial, gorl.Result]], bool] | int:
    """Trains one group of trials after the other, and writes how they do on the way.

    **Returns:**

    Each trial with its result, which has an axis of seeds, the best one first, and whether everything is written; or
    the exit code, if it was stopped.
    """
    directory, seeds = place.mark.parent, len(seed_numbers)

    def write(name: str, content: str | bytes, then: str = "the sweep goes on, and tries again later") -> bool:
        """Writes a file. Where that fails everything is still in memory, so the sweep goes on and tries again."""
        return place.try_to_write(
            f"no {name}", functools.partial(gorl.internal.write_whole, directory / name, content), then
        )

    began = time.monotonic()
    done: list[tuple[Trial, gorl.Result]] = []
    rows: list[Row] = []
    is_written = True
    for batched, chunks, group in groups:
        config, count = group[0].config, len(group)
        labels = [(trial, seed) for trial in group for seed in seed_numbers]
        wall_seconds: list[float] = []
        state, so_far = None, rows
        title = f"{method} on {config.env}: {count} setting{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)} each"
        names = [f"{trial.name}, seed {seed}".removeprefix(", ") for trial, seed in labels]
        with (
            Stop("gorl: stopping after this chunk; once more to stop at once") as stop,
            Progress(config, title, names) as progress,
        ):
            for step, state in chunks:
                jax.block_until_ready(state.index)
                if step.phase != gorl.Phase.EVALUATE:  # until something is learned, nothing is lost
                    stop.heed()
                progress.advance(step, state)
                if step.phase == gorl.Phase.EVALUATE and not step.is_final:
                    wall_seconds.append(round(time.monotonic() - began, 3))
                    new = curve_rows(config, [seed for _, seed in labels], state, wall_seconds)
                    so_far = rows + _labelled(new, labels, is_kept=False)
                    write("sweep.csv", table(so_far))
                if stop.exit_code is not None:
                    break
        if stop.exit_code is not None:
            say(f"stopped; what there is so far is in {directory / 'sweep.csv'}")
            return stop.exit_code
        assert state is not None
        result = gorl.finish(batched, state)
        rows = so_far + _labelled(_kept_rows(result, so_far[-len(labels) :]), labels, is_kept=True)
        is_written = write("sweep.csv", table(rows))
        for index, trial in enumerate(group):
            part = slice(index * seeds, (index + 1) * seeds)
            done.append((trial, jax.tree.map(lambda leaf, part=part: leaf[part], result)))
    done.sort(key=lambda pair: _rank(pair[1]), reverse=True)
    at_last = "the sweep is over, and what is shown here is all there is of that"
    is_written = is_written or write("sweep.csv", table(rows), at_last)
    is_written &= write("sweep.png", _picture(f"{method} on {done[0][0].config.env}", done), at_last)
    return done, is_written


def batch(configs: Sequence[gorl.Config], seeds: int) -> gorl.Config:
    """One config of several that differ in numbers only, each as often in a row as there are seeds."""

    def join(*leaves: float) -> object:
        return leaves[0] if len(set(leaves)) == 1 else jnp.repeat(jnp.asarray(leaves), seeds)

    return jax.tree.map(join, *configs)


def _labelled(rows: list[Row], labels: list[tuple[Trial, int]], is_kept: bool) -> list[Row]:
    """Rows of which each is of the next label, with what was set in front."""
    return [{**labels[index % len(labels)][0].values, **row, "is_kept": int(is_kept)} for index, row in enumerate(rows)]


def _kept_rows(result: gorl.Result, latest: list[Row]) -> list[Row]:
    """The rows of the best policies: like their latest ones, but for the returns."""
    return [
        row
        | {
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
        }
        for row, returns in zip(latest, np.asarray(result.returns), strict=True)
    ]


def _rank(result: gorl.Result) -> float:
    mean = finite_mean(np.asarray(result.returns).mean(axis=1))
    return -np.inf if np.isnan(mean) else mean


def _description(trial: Trial, method: str, grid: Mapping[str, str], seed_numbers: range, identifier: str) -> str:
    return as_json(
        {
            "method": method,
            "set": dict(grid),
            "seeds": list(seed_numbers),
            "config": json.loads(trial.config.to_json()),  # of the first setting
            "identifier": identifier,
            "versions": versions(),
        }
    )


def _picture(title: str, done: list[tuple[Trial, gorl.Result]]) -> bytes:
    curves = [
        RunCurve(
            trial.name or "as it is",
            result.curve.env_steps[0],
            np.asarray(result.curve.stage[0]),
            np.asarray(result.curve.mean_return),
        )
        for trial, result in done[:_DRAWN]
    ]
    which = "" if len(done) <= _DRAWN else f", the best {_DRAWN} of {len(done)} settings"
    return encode(learning_curves(curves, title=f"{title}{which}"), ".png")


def _show(
    method: str,
    done: list[tuple[Trial, gorl.Result]],
    grid: Mapping[str, str],
    options: Sequence[str],
    first_seed: int,
    wall_seconds: float,
    directory: pathlib.Path,
) -> None:
    best, result = done[0]
    seeds = result.returns.shape[0]
    title = f"{method} on {best.config.env}: return of the best policies, {seeds} seed{'s' * (seeds > 1)} each"
    shown = rich.table.Table(title=title, title_justify="left")
    for name in best.values:
        shown.add_column(name, justify="right")
    name = gorl.internal.interval(np.asarray(result.returns).mean(axis=1)).name
    for column in ("mean", name, f"seeds from {first_seed}", "diverged"):
        shown.add_column(column, justify="left" if column.startswith("seeds") else "right")
    for trial, result in done:
        kept = np.asarray(result.returns).mean(axis=1)
        found = gorl.internal.interval(kept)
        diverged = int(np.sum(np.asarray(result.diverged_at) >= 0))
        shown.add_row(
            *trial.values.values(),
            f"{found.mean:.1f}",
            f"[{found.low:.1f}, {found.high:.1f}]",
            ", ".join(f"{of_seed:.1f}" for of_seed in kept),
            f"{diverged} of {seeds}" if diverged else "",
        )
    console = plain_console()
    console.print(shown)
    settings = [word for name, value in {**grid, **best.values}.items() for word in ("--set", f"{name}={value}")]
    console.print(f"the best: {command('gorl', 'train', best.config.env, *options, *settings)}", soft_wrap=True)
    console.print(f"{wall_seconds:.0f} s in all; sweep.csv and sweep.png are in {directory}", soft_wrap=True)
