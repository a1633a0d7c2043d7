"""The tables of `gorl train`, `gorl envs` and `gorl methods`."""

from collections.abc import Collection

import numpy as np
import rich.table

import gorl

from ._process import plain_console
from ._progress import finite_mean
from ._run import Run

_LISTED = 16  # seeds of which each is named; of more there is a summary


def new_table(*columns: str, title: str | None = None, left: Collection[str] = ()) -> rich.table.Table:
    """An empty table. Its columns are aligned to the right, those in `left` to the left."""
    table = rich.table.Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def environment_table(found: dict[str, tuple[int, int]]) -> None:
    """Prints environments and their sizes."""
    table = new_table("environment", "family", "observation", "action", left=("environment", "family"))
    parts = gorl.observation_parts()
    for name, (observation_size, action_size) in found.items():
        privileged = f" ({parts[name]['privileged_state']})" if name in parts else ""
        table.add_row(name, gorl.internal.family(name), f"{observation_size}{privileged}", str(action_size))
    if not parts.keys().isdisjoint(found):
        table.caption = "in brackets: the part privileged_state, which critics see in place of the part state"
    plain_console().print(table)


def method_table() -> None:
    """Prints the methods and their parts."""
    columns = ("method", "learner", "decoder", "what it is")
    table = new_table(*columns, left=columns)
    for name, method in gorl.methods().items():
        decoder = type(method.decoder).__name__ if method.has_decoder else ""
        table.add_row(name, type(method.learner).__name__, decoder, method.summary)
    for column in table.columns[:-1]:
        column.no_wrap = True
    plain_console().print(table)


def summary(run: Run, result: gorl.Result, wall_seconds: float) -> None:
    """Prints the result of a run: a row for each stage, the returns of the best policies, and the place of the files.

    Means are over the seeds that have a return. A seed that diverged has none until its next stage begins.
    """
    config, console = run.config, plain_console()
    diverged_at = np.asarray(result.diverged_at)
    any_diverged = bool(np.any(diverged_at >= 0))
    table = new_table(
        *("stage", "env steps", "first", "best", "first / best before", "held-out loss", "epochs"),
        *["diverged"] * any_diverged,
        title=f"{run.method} on {config.env}: return, mean over seeds",
        left=("diverged",),
    )
    returns = np.array([finite_mean(of_seeds) for of_seeds in np.asarray(result.curve.mean_return).T])
    stages, iterations = np.asarray(result.curve.stage[0]), np.asarray(result.curve.iterations[0])
    best_before = None
    for stage in range(config.num_stages):
        here = (stages == stage) & (iterations >= 0)
        is_refined = stage + 1 < config.num_stages
        first, best = returns[here][0], np.nanmax(returns[here], initial=-np.inf)
        begin, end = iterations[here][[0, -1]]
        diverged_here = [
            f"seed {seed} at {at * config.steps_per_iteration:,}"
            for seed, at in zip(run.seed_numbers, diverged_at.tolist(), strict=True)
            if at >= 0 and (begin < at or stage == 0) and at <= end
        ]
        table.add_row(
            str(stage),
            f"{(end - begin) * config.steps_per_iteration:,}",
            f"{first:.1f}",
            f"{best:.1f}",
            f"{first / best_before:.0%}" if best_before else "",
            f"{np.mean(result.fits.validation_loss[:, stage]):.3f}" if is_refined else "",
            f"{np.mean(result.fits.num_epochs[:, stage]):.0f}" if is_refined else "",
            *[_listed(diverged_here)] * any_diverged,
        )
        best_before = best
    console.print(table)
    diverged = np.flatnonzero(diverged_at >= 0)
    for index in diverged[:_LISTED]:
        why = gorl.Divergence(int(result.divergence[index])).description
        is_known = np.isfinite(result.curve.mean_return[index]).any()
        unknown = "" if is_known else "; no evaluation had a finite return, so its policy is the latest one"
        console.print(f"seed {run.seed_numbers[index]} diverged: {why}{unknown}", soft_wrap=True)
    if diverged.size > _LISTED:
        console.print(f"and {diverged.size - _LISTED} more seeds diverged; {run.curve_file.name} says why")
    best_returns = np.asarray(result.returns).mean(axis=1)
    console.print(
        f"best policies on {result.returns.shape[1]} fresh episodes: mean return {best_returns.mean():.1f}"
        f" ({_of_seeds(best_returns, run.first_seed)})",
        soft_wrap=True,
    )
    console.print(
        f"{wall_seconds:.0f} s in all; {run.picture_file.name}, {run.curve_file.name} and {run.policies_file.name} are "
        f"in {run.directory}",
        soft_wrap=True,
    )


def _of_seeds(returns: np.ndarray, first_seed: int) -> str:
    """The return of each seed; of many seeds the quartiles."""
    if returns.size <= _LISTED:
        return f"seeds from {first_seed}: {', '.join(f'{mean:.1f}' for mean in returns)}"
    quartiles = ", ".join(f"{quartile:.1f}" for quartile in np.nanpercentile(returns, [0, 25, 50, 75, 100]))
    return f"{returns.size:,} seeds; lowest, quartiles and highest: {quartiles}"


def _listed(words: list[str]) -> str:
    more = len(words) - _LISTED
    return ", ".join(words[:_LISTED]) + (f" and {more} more" if more > 0 else "")
