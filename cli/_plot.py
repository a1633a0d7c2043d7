"""`gorl plot`: pictures of runs."""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np

import gorl

from ._figures import SUFFIXES, RunCurve, action_distributions, encode, learning_curves
from ._process import check_output, say, write_output
from ._run import Run, damaged

RETURN = "return_mean"


def plot_curves(
    runs: Sequence[Run],
    path: pathlib.Path,
    column: str = RETURN,
    settings: Mapping[pathlib.Path, str] | None = None,
) -> None:
    """Draws the learning curves of runs, finished or not, on one axis.

    **Arguments:**

    - `runs`: the runs.
    - `path`: the file.
    - `column`: what of `curve.csv` to draw.
    - `settings`: the setting of each run that a sweep trained, by its directory.
    """
    suffix = check_output(path, SUFFIXES)
    labels = run_labels(runs, settings)
    curves = [run_curve(run, label, column) for run, label in zip(runs, labels, strict=True)]
    envs = {str(run.config.env) for run in runs}
    title = envs.pop() if len(envs) == 1 else ""
    title = f"{runs[0].method} on {title}" if len(runs) == 1 else title
    quantity = "return" if column == RETURN else column
    write_output(path, encode(learning_curves(curves, title=title, quantity=quantity), suffix))
    print(path)


def plot_actions(run: Run, path: pathlib.Path, *, seed: int | None, key: int) -> None:
    """Draws the distribution of a policy's actions at states along an episode.

    **Arguments:**

    - `run`: the run.
    - `path`: the file.
    - `seed`: of the policy; `None` for the best one.
    - `key`: decides the episode and the actions.
    """
    suffix = check_output(path, SUFFIXES)
    figure = action_distributions(run.config.env, run.policy(seed), jax.random.key(key))
    write_output(path, encode(figure, suffix))
    print(path)


def run_curve(run: Run, label: str, column: str = RETURN) -> RunCurve:
    """A column of the learning curve of a run so far. Evaluations before which nothing was learned have no metrics."""
    of_seeds: dict[int, list[tuple[int, int, float]]] = {}
    for row in run.curve():
        if column not in row and RETURN in row:
            raise gorl.internal.unknown_name(f"column in {run.curve_file}", column, row)
        try:
            point = (int(row["env_steps"]), int(row["stage"]), float(row[column]))
            of_seeds.setdefault(int(row["seed"]), []).append(point)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(run.curve_file) from error
    if len({len(points) for points in of_seeds.values()}) != 1:
        raise damaged(run.curve_file)
    if not run.is_finished:
        say(f"{run.directory} is not finished: the picture has its curve so far")
    points = np.array(list(of_seeds.values()))
    if column != RETURN:
        points = points[:, np.isfinite(points[:, :, 2]).any(axis=0)]
    return RunCurve(label, points[0, :, 0].astype(np.int64), points[0, :, 1].astype(np.int64), points[:, :, 2])


def shortest_tails(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The shortest end of each path that no other path has. Equal paths get equal ends."""
    different = set(paths)

    def is_unique(path: tuple[str, ...], length: int) -> bool:
        return all(other == path or other[-length:] != path[-length:] for other in different)

    return [next((path[-length:] for length in range(1, len(path)) if is_unique(path, length)), path) for path in paths]


def run_labels(runs: Sequence[Run], settings: Mapping[pathlib.Path, str] | None = None) -> list[str]:
    """The setting of a run of a sweep, by its directory. Of another run the method, the environment if there are
    several, and the directory if two runs would have the same label."""
    several = len({str(run.config.env) for run in runs}) > 1
    labels = [f"{run.method} on {run.config.env}" if several else run.method for run in runs]
    for label, often in Counter(labels).items():
        if often > 1:
            alike = [index for index, other in enumerate(labels) if other == label]
            tails = shortest_tails([runs[index].directory.resolve().parts for index in alike])
            for index, tail in zip(alike, tails, strict=True):
                labels[index] = f"{label} ({pathlib.PurePath(*tail)})"
    return [(settings or {}).get(run.directory) or label for run, label in zip(runs, labels, strict=True)]
