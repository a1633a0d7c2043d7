"""The commands. gorl and JAX are imported inside them, so that `gorl --help` answers at once."""

import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import gorl

app = typer.Typer(
    name="gorl",
    help="Train generative policies with reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs the command line. Bad input gets one sentence on standard error and exit code 2."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # so that an environment or a method in the current directory is found by name
    try:
        app()
    except ValueError as error:
        if not _is_input_error(error):
            raise
        print(f"gorl: {error}", file=sys.stderr)
        sys.exit(2)


def _is_input_error(error: ValueError) -> bool:
    # Nothing of gorl's can have been raised where gorl has not been imported.
    return "gorl" in sys.modules and isinstance(error, sys.modules["gorl"].InputError)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed_version

        print(f"gorl {installed_version('gorl')}")
        raise typer.Exit


@app.command()
def train(
    env: Annotated[str, typer.Argument(help="What to train on; see `gorl envs`.")] = "PointMass",
    method: Annotated[str, typer.Option(help="How to train; see `gorl methods`.")] = "gorl-flow",
    scale: Annotated[str, typer.Option(help="The preset: laptop (minutes on a CPU) or paper (a GPU).")] = "laptop",
    seeds: Annotated[int, typer.Option(help="How many seeds to train side by side.")] = 4,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    steps: Annotated[str | None, typer.Option(help="Environment steps per seed, over all stages, such as 2e6.")] = None,
    stages: Annotated[int | None, typer.Option(help="How many stages the steps are shared out over.")] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="The run's directory; by default a new one in runs/.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config: learner.learning_rate=3e-4."),
    ] = None,
) -> None:
    """Train policies, and leave a learning curve, a picture of it and the policies in a directory."""
    from ._run import run

    config = _configure(env, method, scale, steps, stages, set_ or [])
    run(config, method, seeds=seeds, first_seed=seed, directory=out)


@app.command()
def envs(
    filter_: Annotated[str, typer.Argument(metavar="[FILTER]", help="Only names that contain this.")] = "",
) -> None:
    """List what can be trained on, with the sizes of observations and actions."""
    import gorl

    from ._show import environment_table

    found = {name: sizes for name, sizes in gorl.environments().items() if filter_.casefold() in name.casefold()}
    if not found:
        raise gorl.InputError(f"no environment's name contains {filter_!r}: leave the filter out to see all of them.")
    environment_table(found)


@app.command()
def methods() -> None:
    """List how it can be trained: GoRL with its decoders and learners, and what it is compared with."""
    from ._show import method_table

    method_table()


def _configure(
    env: str, method: str, scale: str, steps: str | None, stages: int | None, settings: list[str]
) -> "gorl.Config":
    """The config that the options ask for: the preset, then `--set`, then `--steps` and `--stages`."""
    import gorl

    config = gorl.preset(env, scale, method)
    changes = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise gorl.InputError(f"--set {setting} sets nothing: write it as FIELD=VALUE.")
        changes[name.strip()] = gorl.parse(config, name.strip(), text.strip())
    config = gorl.replace(config, changes)
    total = None
    if steps is not None:
        try:
            total = gorl.whole_number(steps)
        except ValueError as error:
            raise gorl.InputError(f"--steps must be a whole number such as 2e6, not {steps!r}.") from error
        if total < 1:
            raise gorl.InputError(f"--steps must be at least 1, not {total}.")
    if stages is not None and stages < 1:
        raise gorl.InputError(f"--stages must be at least 1, not {stages}.")
    return gorl.reschedule(config, total_steps=total, num_stages=stages)
