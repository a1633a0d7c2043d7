"""`gorl plot`: runs as pictures."""

import pathlib
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

import gorl

from ._directory import Run
from ._output import check_output, write_output
from ._plot import SUFFIXES, RunCurve, action_distributions, encode, learning_curves
from ._say import say
from ._tails import shortest_tails


def plot_curves(runs: Sequence[Run], path: pathlib.Path) -> None:
    """Draws the learning curves of several runs on one axis.

    **Arguments:**

    - `runs`: the runs, finished or not.
    - `path`: the file.

    **Raises:**

    `gorl.InputError` if a run has no curve yet, or the file cannot be written.
    """
    suffix = check_output(path, SUFFIXES)
    curves = [run_curve(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    envs = list(dict.fromkeys(str(run.config.env) for run in runs))
    title = envs[0] if len(envs) == 1 else ""
    title = f"{runs[0].method} on {title}" if len(runs) == 1 else title
    write_output(path, encode(learning_curves(curves, title=title), suffix))
    print(path)


def plot_actions(run: Run, path: pathlib.Path, *, seed: int | None, key: int) -> None:
    """Draws how a policy's actions are distributed at states along an episode.

    **Arguments:**

    - `run`: the run.
    - `path`: the file.
    - `seed`: whose policy; `None` for the best one.
    - `key`: decides the episode and the actions.

    **Raises:**

    `gorl.InputError` if there is no such policy, or the file cannot be written.
    """
    suffix = check_output(path, SUFFIXES)
    policy = run.policy(seed)
    figure = action_distributions(run.config.env, policy, jax.random.key(key))
    write_output(path, encode(figure, suffix))
    print(path)


def run_curve(run: Run, label: str) -> RunCurve:
    """The learning curve of a run, as far as it has come.

    **Raises:**

    `gorl.InputError` if it has none yet, or the file is not what `gorl train` wrote.
    """
    of_seed: dict[int, list[tuple[int, int, float]]] = {}
    for row in run.curve():
        try:
            point = (int(row["env_steps"]), int(row["stage"]), float(row["return_mean"]))
            of_seed.setdefault(int(row["seed"]), []).append(point)
        except (KeyError, TypeError, ValueError) as error:
            raise gorl.InputError(f"{run.curve_file} is not what gorl train wrote: copy it again.") from error
    if not of_seed or len({len(points) for points in of_seed.values()}) != 1:
        raise gorl.InputError(f"{run.curve_file} has not as many rows for each seed: copy it again.")
    if not run.is_finished:
        say(f"{run.directory} is not finished: its curve is drawn as far as it has come")
    points = np.array(list(of_seed.values()))
    return RunCurve(label, points[0, :, 0].astype(np.int64), points[0, :, 1].astype(np.int64), points[:, :, 2])


def _labels(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: the method; the environment if there are several; the directory if it takes that."""
    several = len({str(run.config.env) for run in runs}) > 1
    labels = [f"{run.method} on {run.config.env}" if several else run.method for run in runs]
    for label, often in Counter(labels).items():
        if often > 1:
            alike = [index for index, other in enumerate(labels) if other == label]
            tails = shortest_tails([runs[index].directory.resolve().parts for index in alike])
            for index, tail in zip(alike, tails, strict=True):
                labels[index] = f"{label} ({pathlib.PurePath(*tail)})"
    return labels
