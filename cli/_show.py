"""Tables."""

import pathlib

import numpy as np
import rich.console
import rich.table

import gorl


def environment_table(found: dict[str, tuple[int, int]]) -> None:
    """Prints environments and their sizes."""
    table = rich.table.Table()
    table.add_column("environment", no_wrap=True)
    table.add_column("family", no_wrap=True)
    for size in ("observation", "action"):
        table.add_column(size, justify="right")
    for name, (observation_size, action_size) in found.items():
        table.add_row(name, gorl.family(name), str(observation_size), str(action_size))
    rich.console.Console().print(table)


def method_table() -> None:
    """Prints the methods, and what each is made of."""
    table = rich.table.Table()
    for column in ("method", "learner", "decoder"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is")
    for name, method in gorl.methods().items():
        decoder = type(method.decoder).__name__ if method.is_staged else ""
        table.add_row(name, type(method.learner).__name__, decoder, method.summary)
    rich.console.Console(highlight=False).print(table)


def summary(
    config: gorl.Config,
    method: str,
    result: gorl.Result,
    first_seed: int,
    wall_seconds: float,
    directory: pathlib.Path,
) -> None:
    """Prints what came of a run: a row for each stage, the kept policies, and where the files are."""
    console = rich.console.Console(highlight=False)
    table = rich.table.Table(title=f"{method} on {config.env}: return, mean over seeds", title_justify="left")
    for column in ("stage", "env steps", "first", "best", "first / best before", "held-out loss", "epochs"):
        table.add_column(column, justify="right")
    returns = np.asarray(result.curve.mean_return).mean(axis=0)
    stage_of, env_steps = np.asarray(result.curve.stage[0]), result.curve.env_steps[0]
    before = None
    for stage in range(config.num_stages):
        here = stage_of == stage
        refined = stage + 1 < config.num_stages
        first, best = returns[here][0], returns[here].max()
        table.add_row(
            str(stage),
            f"{env_steps[here][-1] - env_steps[here][0]:,}",
            f"{first:.1f}",
            f"{best:.1f}",
            f"{first / before:.0%}" if before else "",
            f"{np.mean(result.fits.heldout_loss[:, stage]):.3f}" if refined else "",
            f"{np.mean(result.fits.num_epochs[:, stage]):.0f}" if refined else "",
        )
        before = best
    console.print(table)
    kept = np.asarray(result.returns).mean(axis=1)
    of_seeds = ", ".join(f"{mean:.1f}" for mean in kept)
    console.print(
        f"kept policies on {result.returns.shape[1]} fresh episodes: mean return {kept.mean():.1f}"
        f" (seeds from {first_seed}: {of_seeds})",
        soft_wrap=True,
    )
    console.print(
        f"{wall_seconds:.0f} s in all; curve.png, curve.csv and policies.eqx are in {directory}", soft_wrap=True
    )
