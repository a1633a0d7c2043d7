"""The commands. gorl and JAX are imported inside them, so that `gorl --help` answers at once."""

import os
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import gorl

RunDirectory = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="The directory of a run of gorl train.")]
PolicySeed = Annotated[int | None, typer.Option("--seed", help="Whose policy, of the seeds of the run.")]
EpisodeKey = Annotated[int, typer.Option("--key", help="Decides the start states, and what is drawn.")]
Steps = Annotated[
    str | None,
    typer.Option(
        help="Environment steps per seed, over all stages, such as 2e6; not beside --set stage_steps. Evaluations are "
        "spread out like them, unless evaluation_interval is set."
    ),
]
Stages = Annotated[
    int | None, typer.Option(help="How many stages the steps are shared out over; not beside --set stage_steps.")
]

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
        _refuse(str(error))
    except (RuntimeError, AssertionError):  # JAX looks for its devices when it first needs one, wherever that is
        sentence = _lack_of_devices()
        if sentence is None:
            raise
        _refuse(sentence)


def _refuse(sentence: str) -> NoReturn:
    print(f"gorl: {sentence}", file=sys.stderr)
    sys.exit(2)


def _is_input_error(error: ValueError) -> bool:
    # Nothing of gorl's can have been raised where gorl has not been imported.
    return "gorl" in sys.modules and isinstance(error, sys.modules["gorl"].InputError)


def _lack_of_devices() -> str | None:
    """What to do where JAX finds none of the devices that it was told to compute on; `None` where it does."""
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError) as error:
        # Nothing at all, or a reason with advice in brackets behind it.
        reason = str(error).partition("\n")[0].partition(" (")[0].rstrip(".")
        asked = os.environ.get("JAX_PLATFORMS")
        told = (
            f"that JAX_PLATFORMS={asked} asks for: unset it, or set it to cpu"
            if asked
            else "here: set JAX_PLATFORMS=cpu"
        )
        return f"JAX cannot compute on the devices {told}{f' ({reason})' * bool(reason)}."
    return None


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    cache: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Where compiled programs are kept for the next time, or off. By default JAX_COMPILATION_CACHE_DIR, "
            "or a directory of gorl's in the user's cache.",
        ),
    ] = None,
) -> None:
    if version:
        from importlib.metadata import version as installed_version

        print(f"gorl {installed_version('gorl')}")
        raise typer.Exit

    from ._cache import keep_programs
    from ._cores import use_every_core

    keep_programs(cache)
    use_every_core()


@app.command()
def train(
    env: Annotated[str, typer.Argument(help="What to train on; see `gorl envs`.")] = "PointMass",
    method: Annotated[str, typer.Option(help="How to train; see `gorl methods`.")] = "gorl-flow",
    scale: Annotated[str, typer.Option(help="The preset: laptop (minutes on a CPU) or paper (a GPU).")] = "laptop",
    seeds: Annotated[int, typer.Option(help="How many seeds to train side by side.")] = 2,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    steps: Steps = None,
    stages: Stages = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="The run's directory; by default a new one in runs/.")
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="How much of a run may be lost; inf to save only when stopped.")
    ] = 30.0,
    log: Annotated[
        list[str] | None, typer.Option(help="Log to tensorboard or wandb as well; may be given several times.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config: learner.learning_rate=3e-4."),
    ] = None,
) -> None:
    """Train policies, and leave a learning curve, a picture of it and the policies in a directory.

    Ctrl-C stops it after saving everything, and `gorl resume` goes on. It exits with 3 if a seed diverged.
    """
    import gorl

    from ._directory import Run, new_directory
    from ._train import begin

    config = gorl.preset(env, scale, method)
    values = {name: gorl.internal.parse(config, name, text) for name, text in _settings(set_ or []).items()}
    config = _changer(steps, stages, values)(config, values)
    run = Run(
        out or new_directory(str(config.env), method),
        config,
        method,
        seed,
        seeds,
        checkpoint_every,
        tuple(log or ()),
    )
    raise typer.Exit(begin(run, is_named=out is not None))


@app.command()
def resume(
    run: Annotated[pathlib.Path, typer.Argument(help="The directory of a run that was stopped or is finished.")],
    steps: Annotated[
        str | None,
        typer.Option(
            help="Make the run longer: environment steps per seed, over all stages, those that are done among them. "
            "Further stages as long as its last are added; without a decoder its one stage gets longer."
        ),
    ] = None,
) -> None:
    """Go on with a run that was stopped, bit for bit as if it had not been; with --steps, beyond its end as well.

    With --steps everything up to the end before stays as it is. What follows is what a run that began with all these
    steps would have done, bit for bit unless learner.learning_rate_decay is above 0: then the learning rate rises, as
    it decays towards the new end. Until the run is finished again, policies.eqx and summary.json are those of its end
    before.
    """
    from ._train import resume as resume_run

    raise typer.Exit(resume_run(run, _total_steps(steps)))


@app.command("eval")
def eval_(
    run: RunDirectory,
    episodes: Annotated[int, typer.Option(help="How many fresh episodes with each policy.")] = 128,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Draw latents, rather than the mode.")] = False,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object, with every return in it.")] = False,
) -> None:
    """Play fresh episodes with the best policies, and say what they earn and how sure that is."""
    from ._directory import Run
    from ._evaluate import evaluate

    evaluate(Run.open(run), episodes=episodes, stochastic=stochastic, seed=seed, key=key, as_json=json)


@app.command()
def render(
    run: RunDirectory,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The file: .mp4, .gif, or .png for a strip.")],
    episodes: Annotated[int, typer.Option(help="How many episodes, side by side.")] = 1,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="Draw latents, rather than the mode.")] = False,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
    steps: Annotated[int | None, typer.Option(help="Leave each episode after this many actions.")] = None,
    width: Annotated[int, typer.Option(help="Of a frame, in pixels.")] = 480,
    height: Annotated[int, typer.Option(help="Of a frame, in pixels.")] = 360,
    camera: Annotated[str | None, typer.Option(help="A camera of the model, or free.")] = None,
) -> None:
    """Make a film of a best policy."""
    from ._directory import Run
    from ._render import check_film, choose_gl, render as render_film

    check_film(out)
    opened = Run.open(run)
    choose_gl()  # before anything imports MuJoCo, which looking at a run that is not finished does
    policy = opened.policy(seed)
    render_film(
        opened.config.env,
        policy,
        key,
        out,
        num_episodes=episodes,
        stochastic=stochastic,
        num_steps=steps,
        height=height,
        width=width,
        camera=camera,
    )


@app.command()
def plot(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Directories of runs.")],
    out: Annotated[pathlib.Path | None, typer.Option("-o", "--out", help="The file: .png, .pdf or .svg.")] = None,
    actions: Annotated[
        bool, typer.Option("--actions", help="Draw how a policy's actions are distributed along an episode.")
    ] = False,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
) -> None:
    """Draw the learning curves of runs on one axis, or the actions of one policy."""
    import gorl

    from ._compare import plot_actions, plot_curves
    from ._directory import Run

    opened = [Run.open(run) for run in runs]
    if not actions:
        plot_curves(opened, out or pathlib.Path("curves.png"))
        return
    if len(opened) > 1:
        raise gorl.InputError("--actions draws those of one policy: give one run.")
    plot_actions(opened[0], out or pathlib.Path("actions.png"), seed=seed, key=key)


@app.command()
def sweep(
    env: Annotated[str, typer.Argument(help="What to train on; see `gorl envs`.")] = "PointMass",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE,...",
            help="Values to try: learner.learning_rate=1e-4,1e-3 (between tuples a semicolon). All combinations.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="How to train; see `gorl methods`.")] = "gorl-flow",
    scale: Annotated[str, typer.Option(help="The preset: laptop (minutes on a CPU) or paper (a GPU).")] = "laptop",
    seeds: Annotated[int, typer.Option(help="How many seeds of each setting.")] = 4,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    steps: Steps = None,
    stages: Stages = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="The directory of the results; by default a new one in runs/.")
    ] = None,
) -> None:
    """Train many settings side by side, as far as possible in one compiled run, and say which is best."""
    import gorl

    from ._directory import new_directory
    from ._sweep import sweep as sweep_trials, trials

    grid = _settings(set_ or [])
    config = gorl.preset(env, scale, method)
    chosen = trials(config, grid, _changer(steps, stages, grid))
    given = {"--method": method, "--scale": scale, "--steps": steps, "--stages": stages}
    raise typer.Exit(
        sweep_trials(
            chosen,
            method,
            grid=grid,
            options=[word for name, value in given.items() if value is not None for word in (name, str(value))],
            seeds=seeds,
            first_seed=seed,
            directory=out or new_directory(str(config.env), method, "sweep"),
            is_named=out is not None,
        )
    )


@app.command()
def export(
    run: RunDirectory,
    out: Annotated[
        pathlib.Path, typer.Option("-o", "--out", help="The file: .stablehlo, .onnx, or both if it has no suffix.")
    ],
    draw: Annotated[
        str, typer.Option(help="The source of randomness: a latent, of which 0 is the mode, or a seed (.stablehlo).")
    ] = "latent",
    seed: PolicySeed = None,
) -> None:
    """Write a best policy for programs without this library: StableHLO for JAX, ONNX for anything."""
    from ._directory import Run
    from ._export import check_export, export as export_policy

    check_export(out, draw)
    export_policy(Run.open(run).policy(seed), out, draw)


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


def _settings(options: list[str]) -> dict[str, str]:
    """What `--set` was given: texts by the dotted name of a field."""
    import gorl

    settings = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator:
            raise gorl.InputError(f"--set {option} sets nothing: write it as FIELD=VALUE.")
        if name.strip() in settings:
            raise gorl.InputError(f"--set {name.strip()} is there twice: give it once.")
        settings[name.strip()] = text.strip()
    return settings


def _changer(
    steps: str | None, stages: int | None, names: "Collection[str]"
) -> "Callable[[gorl.Config, Mapping[str, Any]], gorl.Config]":
    """What makes a config of a preset and of values of the fields of these names, with `--steps` and `--stages`."""
    import gorl

    given = [option for option, value in (("--steps", steps), ("--stages", stages)) if value is not None]
    if given and "stage_steps" in names:
        raise gorl.InputError(f"--set stage_steps says what {' and '.join(given)} would: leave one or the other out.")
    total = _total_steps(steps)
    if stages is not None and stages < 1:
        raise gorl.InputError(f"--stages must be at least 1, not {stages}.")
    return lambda config, values: gorl.reschedule(config, total_steps=total, num_stages=stages, changes=values)


def _total_steps(steps: str | None) -> int | None:
    """What `--steps` was given."""
    import gorl

    if steps is None:
        return None
    try:
        total = gorl.internal.whole_number(steps)
    except ValueError as error:
        raise gorl.InputError(f"--steps must be a whole number such as 2e6, not {steps!r}.") from error
    if total < 1:
        raise gorl.InputError(f"--steps must be at least 1, not {total}.")
    return total
