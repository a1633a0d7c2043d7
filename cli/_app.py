"""The commands. They import gorl and JAX themselves, so that `gorl --help` answers at once."""

import os
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ._environment import keep_programs, use_every_core

if TYPE_CHECKING:
    import gorl

    from ._run import GivenDecoder

# Options that several commands share.
Env = Annotated[str, typer.Argument(help="The environment; see `gorl envs`.")]
MethodName = Annotated[str, typer.Option("--method", help="The method; see `gorl methods`.")]
Scale = Annotated[str, typer.Option(help="The preset: laptop (minutes on a CPU) or paper (a GPU).")]
Seeds = Annotated[int, typer.Option(help="The number of seeds, which train side by side.")]
FirstSeed = Annotated[int, typer.Option("--seed", help="The first seed.")]
Steps = Annotated[
    str | None,
    typer.Option(
        help="Environment steps per seed over all stages, such as 2e6. The evaluations spread with them, unless "
        "evaluation_interval is set. Not together with --set stage_steps."
    ),
]
Stages = Annotated[
    int | None, typer.Option(help="The number of stages that share the steps. Not together with --set stage_steps.")
]
Out = Annotated[pathlib.Path | None, typer.Option(help="The directory of the results; by default a new one in runs/.")]
CheckpointEvery = Annotated[
    float, typer.Option(metavar="SECONDS", help="A kill loses no more than this; inf to save only when stopped.")
]
Log = Annotated[list[str] | None, typer.Option(help="Also log to tensorboard or wandb; can be given several times.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config, as learner.learning_rate=3e-4."),
]
SetSeveral = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE,...",
        help="Try values of a field, as learner.learning_rate=1e-4,1e-3 (between tuples a semicolon). Several fields "
        "are tried in all combinations.",
    ),
]
Mesh = Annotated[
    str | None,
    typer.Option(
        metavar="seeds=N,envs=M", help="The devices of the seeds, and of the environments of each; see `devices.md`."
    ),
]
DecoderOf = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--decoder", metavar="RUN", help="Begin with the decoder that gorl fit wrote here, or with that of a run."
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Train in several processes, which meet at process 0; auto finds SLURM, Kubernetes, MPI or a TPU. See "
        "`devices.md`.",
    ),
]
NumProcesses = Annotated[int | None, typer.Option(help="The number of processes, with --coordinator HOST:PORT.")]
ProcessId = Annotated[int | None, typer.Option(help="Which of the processes this is, from 0.")]
CoordinatorTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="The time in which the processes have to meet.")
]
RunDirectory = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="The directory of a run.")]
PolicySeed = Annotated[int | None, typer.Option("--seed", help="The seed of the policy; by default the best one.")]
EpisodeKey = Annotated[int, typer.Option("--key", help="Decides the start states and every random draw.")]
Commands = Annotated[
    list[str] | None,
    typer.Option("--command", metavar="NAME=VALUE", help="Fix a command of the task: forward=1.0. May be repeated."),
]
Stochastic = Annotated[bool, typer.Option("--stochastic", help="Sample latents instead of taking the mode.")]

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
        sys.path.insert(0, "")  # finds an environment or a method in the current directory by name
    try:
        app()
    except ValueError as error:
        # A command that has not imported gorl cannot raise its error.
        if "gorl" not in sys.modules or not isinstance(error, sys.modules["gorl"].InputError):
            raise
        _refuse(str(error))
    except (RuntimeError, AssertionError):  # JAX raises one of them where it first needs a device that is missing
        sentence = _missing_devices()
        if sentence is None:
            raise
        _refuse(sentence)


def _refuse(sentence: str) -> NoReturn:
    print(f"gorl: {sentence}", file=sys.stderr)
    sys.exit(2)


def _missing_devices() -> str | None:
    """A sentence for the case that JAX finds none of the devices that it was told to use; `None` if it finds them."""
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except (RuntimeError, AssertionError) as error:
        # JAX says nothing, or a reason with advice in brackets behind it.
        reason = str(error).partition("\n")[0].partition(" (")[0].rstrip(".")
        asked = os.environ.get("JAX_PLATFORMS")
        which = f"that JAX_PLATFORMS={asked} asks for: unset it, or set it to cpu"
        told = which if asked else "here: set JAX_PLATFORMS=cpu"
        return f"JAX cannot compute on the devices {told}{f' ({reason})' * bool(reason)}."
    return None


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    cache: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Keep compiled programs here for the next time; off to keep none. By default they are in "
            "JAX_COMPILATION_CACHE_DIR, or in the user's cache.",
        ),
    ] = None,
) -> None:
    if version:
        from importlib.metadata import version as installed_version

        print(f"gorl {installed_version('gorl')}")
        raise typer.Exit
    keep_programs(cache)
    use_every_core()


@app.command()
def train(
    env: Env = "PointMass",
    method: MethodName = "gorl-flow",
    scale: Scale = "laptop",
    seeds: Seeds = 2,
    seed: FirstSeed = 0,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = None,
    checkpoint_every: CheckpointEvery = 30.0,
    log: Log = None,
    mesh: Mesh = None,
    decoder: DecoderOf = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    coordinator_timeout: CoordinatorTimeout = 60.0,
    report: Annotated[
        bool, typer.Option("--report", help="Keep a page about the run, report.html, fresh in its directory.")
    ] = False,
    set_: Set = None,
) -> None:
    """Train policies. The directory then holds a learning curve, a picture of it, and the policies.

    Ctrl-C saves everything and stops; `gorl resume` goes on. The exit code is 3 if a seed diverged.
    """
    from ._mesh import parse_mesh
    from ._processes import join
    from ._run import Run, new_directory
    from ._settings import make_config, settings
    from ._train import OneRun, begin

    with join(coordinator, num_processes, process_id, coordinator_timeout) as processes:
        given = _given(decoder)
        config = make_config(_preset(env, scale, method, given), settings(set_ or []), steps, stages)
        directory = out or new_directory(str(config.env), method)
        loggers = dict.fromkeys([*(log or ()), *["report"] * report])
        _prepare_film(loggers)
        run = Run(directory, config, method, seed, seeds, checkpoint_every, tuple(loggers), given=given)
        raise typer.Exit(begin(OneRun.of(run), out is not None, parse_mesh(mesh), processes))


@app.command()
def sweep(
    env: Env = "PointMass",
    set_: SetSeveral = None,
    method: MethodName = "gorl-flow",
    scale: Scale = "laptop",
    seeds: Seeds = 4,
    seed: FirstSeed = 0,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = None,
    checkpoint_every: CheckpointEvery = 30.0,
    log: Log = None,
    mesh: Mesh = None,
    decoder: DecoderOf = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    coordinator_timeout: CoordinatorTimeout = 60.0,
) -> None:
    """Train a run for each setting, and compare them in a table and a picture.

    Settings that differ in numbers only train side by side in one compiled program. Ctrl-C saves everything and stops;
    `gorl resume` goes on.
    """
    from ._mesh import parse_mesh
    from ._processes import join
    from ._run import Run, new_directory
    from ._settings import settings, trials
    from ._sweep import Sweep
    from ._train import begin

    with join(coordinator, num_processes, process_id, coordinator_timeout) as processes:
        given, texts = _given(decoder), settings(set_ or [])
        preset = _preset(env, scale, method, given)
        chosen = trials(preset, texts, steps, stages)
        directory = out or new_directory(str(preset.env), method, "sweep")
        _prepare_film(log or ())
        run = Run(directory, chosen[0].config, method, seed, seeds, checkpoint_every, tuple(log or ()), given=given)
        options = _options(method, scale, steps, stages, decoder)
        job = Sweep.of(directory, chosen, run, texts, options)
        raise typer.Exit(begin(job, out is not None, parse_mesh(mesh), processes))


@app.command()
def tune(
    env: Env = "PointMass",
    trials: Annotated[int, typer.Option(help="Trials of the whole study, those already done included.")] = 32,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=LOW:HIGH",
            help="Search a field: learner.learning_rate=1e-4:1e-2:log, learner.clip_epsilon=0.1:0.3, or "
            "decoder.solver='Euler|Heun'. By default some numbers of the learner.",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Trials side by side.")] = 8,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Leave trials that return less than half of those before.")
    ] = True,
    set_: Set = None,
    method: MethodName = "gorl-flow",
    scale: Scale = "laptop",
    seeds: Seeds = 2,
    seed: FirstSeed = 0,
    steps: Steps = None,
    stages: Stages = None,
    out: Out = None,
    checkpoint_every: CheckpointEvery = 30.0,
    log: Log = None,
    decoder: DecoderOf = None,
) -> None:
    """Search for settings that return more, by Optuna, with trials that train side by side.

    Ctrl-C saves everything and stops; the same command with the same --out goes on.
    """
    from ._run import Run, new_directory
    from ._settings import settings
    from ._space import default_search, make_space, searches
    from ._tune import Search, tune as tune_settings

    given, texts = _given(decoder), settings(set_ or [])
    preset = _preset(env, scale, method, given)
    asked = searches(search or []) or default_search(preset, texts)
    space = make_space(preset, asked, texts, steps, stages)
    directory = out or new_directory(str(preset.env), method, "tune")
    _prepare_film(log or ())
    run = Run(directory, space.config({}), method, seed, seeds, checkpoint_every, tuple(log or ()), given=given)
    options = _options(method, scale, steps, stages, decoder)
    whole = Search(run, space, asked, options, parallel, prune)
    raise typer.Exit(tune_settings(whole, trials, is_named=out is not None))


@app.command()
def resume(
    directory: Annotated[
        pathlib.Path, typer.Argument(metavar="RUN", help="The directory of a run or a sweep, stopped or finished.")
    ],
    steps: Annotated[
        str | None,
        typer.Option(
            help="Make a run longer: environment steps per seed over all stages, those already done included. It adds "
            "stages as long as the last one, or without a decoder lengthens the only stage."
        ),
    ] = None,
    mesh: Mesh = None,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    coordinator_timeout: CoordinatorTimeout = 60.0,
) -> None:
    """Continue a run or a sweep, bit for bit as if it had never stopped; with --steps beyond its end.

    It may go on with any devices. With more or fewer for each seed it is the same by rounding only, and says so.
    With --steps everything up to the old end stays. The rest is the same bit for bit as in a run that began with all
    these steps, unless learner.learning_rate_decay is above 0. In that case the learning rate rises at the old end,
    since it now decays towards the new one. Until the run is finished again, policies.eqx and summary.json are those of
    the old end.
    """
    from ._mesh import parse_mesh
    from ._processes import join
    from ._settings import total_steps
    from ._sweep import open_job
    from ._train import resume as resume_job

    with join(coordinator, num_processes, process_id, coordinator_timeout) as processes:
        total = total_steps(steps)
        job = open_job(directory, total)
        _prepare_film([name for run in job.runs.values() for name in run.log])
        raise typer.Exit(resume_job(job, total, parse_mesh(mesh), processes))


@app.command("config")
def config_(
    env: Env = "PointMass",
    method: MethodName = "gorl-flow",
    scale: Scale = "laptop",
    steps: Steps = None,
    stages: Stages = None,
    set_: Set = None,
) -> None:
    """Print the config that `gorl train` would train, as JSON."""
    from ._settings import make_config, settings

    print(make_config(_preset(env, scale, method, None), settings(set_ or []), steps, stages).to_json(), end="")


@app.command("eval")
def eval_(
    run: RunDirectory,
    episodes: Annotated[int, typer.Option(help="Fresh episodes of each policy.")] = 128,
    stochastic: Stochastic = False,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object with every return.")] = False,
    command: Commands = None,
    randomize: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='Randomise the physics: "friction=0.5:1.25 mass=0.9:1.1", or nominal.'),
    ] = None,
    vary: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=LOW:HIGH:COUNT", help="A table over values of one randomisation: friction=0.3:1.2:7."
        ),
    ] = None,
) -> None:
    """Print the returns of the best policies in fresh episodes, and how certain they are."""
    from ._evaluate import evaluate, evaluate_over
    from ._run import Run

    opened = Run.open(run)
    env = opened.changed_env(command, randomize)
    options = {"episodes": episodes, "stochastic": stochastic, "seed": seed, "key": key, "as_json": json}
    if vary is None:
        evaluate(opened, env=env, **options)
    else:
        evaluate_over(vary, opened, env=env, **options)


@app.command()
def render(
    run: RunDirectory,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The file: .mp4, .gif, or .png for a strip.")],
    episodes: Annotated[int, typer.Option(help="Episodes side by side.")] = 1,
    stochastic: Stochastic = False,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
    steps: Annotated[int | None, typer.Option(help="Leave each episode after this many actions.")] = None,
    width: Annotated[int, typer.Option(help="Width of a frame in pixels.")] = 480,
    height: Annotated[int, typer.Option(help="Height of a frame in pixels.")] = 360,
    camera: Annotated[str | None, typer.Option(help="A camera of the model, or free.")] = None,
    command: Commands = None,
) -> None:
    """Make a film of a best policy."""
    from ._render import check_film, choose_gl, render as render_film
    from ._run import Run

    check_film(out)
    opened = Run.open(run)
    choose_gl()  # before the policy of an unfinished run is loaded, which imports MuJoCo
    render_film(
        opened.changed_env(command),
        opened.policy(seed),
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
def view(
    target: Annotated[str, typer.Argument(metavar="RUN|ENV", help="The directory of a run, or an environment.")],
    host: Annotated[
        str, typer.Option(help="The address of the page; 0.0.0.0 shows it to the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port of the page; if it is taken, the next one that is not.")] = 8080,
    stochastic: Stochastic = False,
    seed: PolicySeed = None,
    actions: Annotated[
        str | None, typer.Option(help="How to act in an environment: random (by default) or zero.")
    ] = None,
    key: EpisodeKey = 0,
    command: Commands = None,
) -> None:
    """Watch the best policies of a run act in the browser, live: pause, push, draw latents. Or look at an environment.

    Ctrl-C ends it. Nobody else on the network sees the page, unless --host says so.
    """
    from ._view import view as view_live

    view_live(
        target, host=host, port=port, seed=seed, stochastic=stochastic, actions=actions, key=key, commands=command
    )


@app.command()
def plot(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Directories of runs, or of sweeps.")],
    out: Annotated[pathlib.Path | None, typer.Option("-o", "--out", help="The file: .png, .pdf or .svg.")] = None,
    actions: Annotated[
        bool, typer.Option("--actions", help="Draw the distribution of one policy's actions along an episode.")
    ] = False,
    column: Annotated[
        str, typer.Option(help="What of curve.csv to draw: reward/velocity, value_loss...")
    ] = "return_mean",
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
) -> None:
    """Draw the learning curves of runs on one axis, or the actions of one policy."""
    import gorl

    from ._plot import plot_actions, plot_curves
    from ._sweep import open_runs

    opened, settings = open_runs(runs)
    if not actions:
        plot_curves(opened, out or pathlib.Path("curves.png"), column, settings)
        return
    if max(len(runs), len(opened)) > 1:
        raise gorl.InputError("--actions draws those of one policy: give one run.")
    plot_actions(opened[0], out or pathlib.Path("actions.png"), seed=seed, key=key)


@app.command()
def inspect(
    run: RunDirectory,
    out: Annotated[
        pathlib.Path | None, typer.Option("-o", "--out", help="Also draw the densities: .png, .pdf or .svg.")
    ] = None,
    states: Annotated[int, typer.Option(help="States along the episode.")] = 6,
    actions: Annotated[int, typer.Option(help="Actions sampled at each state.")] = 4096,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Print what a best policy's actions are like along an episode: entropy, modes, distance from a Gaussian."""
    from ._inspect import inspect as inspect_policy
    from ._run import Run

    inspect_policy(Run.open(run), seed=seed, key=key, num_states=states, num_actions=actions, as_json=json, out=out)


@app.command()
def report(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUN...", help="Directories of runs, or of sweeps.")],
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The file: .html.")] = pathlib.Path("report.html"),
) -> None:
    """Make a page about runs or sweeps, finished or not, that opens without a network: curves, tables, a film."""
    from ._render import choose_gl_if_any
    from ._report import check_report, report as make_report
    from ._sweep import open_runs

    check_report(out)
    opened, settings = open_runs(runs)
    choose_gl_if_any()  # before MuJoCo is imported
    make_report(opened, out, settings)


@app.command()
def distill(
    run: RunDirectory,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="A new directory, which becomes a finished run.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of decoder or refinement: decoder.width=128."),
    ] = None,
    key: EpisodeKey = 0,
) -> None:
    """Fit a decoder that takes one pass of its network to a run's decoder, and compare the returns."""
    from ._distill import distill as distill_run
    from ._run import Run
    from ._settings import settings

    distill_run(Run.open(run), out, settings(set_ or []), key)


@app.command()
def collect(
    run: RunDirectory,
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="The file: .npz.")],
    episodes: Annotated[int, typer.Option(help="Episodes of the policy.")] = 100,
    stochastic: Stochastic = False,
    seed: PolicySeed = None,
    key: EpisodeKey = 0,
) -> None:
    """Write episodes of a best policy as demonstrations, for gorl fit."""
    from ._demonstrations import collect as collect_episodes
    from ._run import Run

    collect_episodes(Run.open(run), out, episodes=episodes, stochastic=stochastic, seed=seed, key=key)


@app.command()
def fit(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Demonstrations: an .npz file, or minari:NAME for a Minari data set.")
    ],
    out: Annotated[pathlib.Path, typer.Option("-o", "--out", help="A new directory, for gorl train --decoder.")],
    env: Annotated[
        str | None, typer.Option(help="The environment, where the data does not say which; see `gorl envs`.")
    ] = None,
    method: MethodName = "gorl-flow",
    scale: Scale = "laptop",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of decoder or refinement: decoder.width=128."),
    ] = None,
    key: EpisodeKey = 0,
) -> None:
    """Fit a decoder to demonstrations, and try it. gorl train --decoder begins a run with it."""
    from ._demonstrations import fit as fit_decoder, read_and_configure
    from ._settings import settings

    demonstrations, config = read_and_configure(data, env, scale, method, settings(set_ or []))
    fit_decoder(demonstrations, config, method, out, key)


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
    check: Annotated[
        bool, typer.Option("--check", help="Run the .onnx beside the policy, and time it on one core.")
    ] = False,
) -> None:
    """Write a best policy for programs without this library: StableHLO for JAX, ONNX for any language."""
    from ._export import check_export, export as export_policy
    from ._run import Run

    check_export(out, draw, check)
    opened = Run.open(run)
    export_policy(opened.policy(seed), out, draw, opened.config.env, check)


@app.command()
def envs(
    filter_: Annotated[str, typer.Argument(metavar="[FILTER]", help="Only names that contain this.")] = "",
) -> None:
    """List the environments and the sizes of their observations and actions."""
    import gorl

    from ._tables import environment_table

    found = {name: sizes for name, sizes in gorl.environments().items() if filter_.casefold() in name.casefold()}
    if not found:
        raise gorl.InputError(f"no environment's name contains {filter_!r}: leave the filter out to see all of them.")
    environment_table(found)


@app.command()
def methods() -> None:
    """List the methods: GoRL with its learners and decoders, and the baselines."""
    from ._tables import method_table

    method_table()


def _prepare_film(loggers: Iterable[str]) -> None:
    """Chooses what draws the film of a report, before MuJoCo is imported."""
    if "report" in loggers:
        from ._render import choose_gl_if_any

        choose_gl_if_any()


def _options(method: str, scale: str, steps: str | None, stages: int | None, decoder: pathlib.Path | None) -> list[str]:
    """The options that were given, for a `gorl train` that trains one of several settings."""
    given = {"--method": method, "--scale": scale, "--steps": steps, "--stages": stages, "--decoder": decoder}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _given(decoder: pathlib.Path | None) -> "GivenDecoder | None":
    """The decoder that `--decoder` asks for."""
    from ._run import GivenDecoder

    return None if decoder is None else GivenDecoder.of(decoder)


def _preset(env: str, scale: str, method: str, given: "GivenDecoder | None") -> "gorl.Config":
    import gorl

    preset = gorl.preset(env, scale, method)
    return preset if given is None else given.begin(preset)
