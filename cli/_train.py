"""The loop of `gorl train`, `gorl sweep` and `gorl resume`, and the files that it leaves."""

import abc
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import gorl

from ._figures import RunCurve, encode, learning_curves
from ._log import Loggers, Row, check_loggers, finish_report
from ._mesh import devices_of_a_seed
from ._process import Stop, advice, as_json, command, plural, say
from ._processes import ALONE, Processes
from ._progress import Progress
from ._run import (
    GoneError,
    Run,
    check_new,
    make_directory,
    only_writer,
    parts,
    restore,
    save,
    say_placeholders,
    try_to_write,
    versions,
)
from ._tables import summary

DIVERGED = 3  # the exit code if a seed diverged
_STOPPING = "stopping after this step, and saving; once more to stop at once"
_TRY_AGAIN = "the run goes on, and tries again later"


@dataclasses.dataclass(frozen=True)
class Job(abc.ABC):
    """What one command trains: a run, or the runs of a sweep.

    **Arguments:**

    - `directory`: the directory of the job, which `gorl resume` takes.
    - `runs`: the runs, by names that tell them apart. They have the same seeds.
    """

    directory: pathlib.Path
    runs: Mapping[str, Run]

    @abc.abstractmethod
    def create(self) -> None:
        """Writes what the job is, so that it can be resumed."""

    @property
    @abc.abstractmethod
    def is_finished(self) -> bool:
        """Whether every file of the finished job is there."""

    @abc.abstractmethod
    def finish(self, results: Sequence[tuple[Run, gorl.Result, float]]) -> int:
        """Writes and shows the results of the job, and returns the exit code. Raises `OSError` if they are not written.

        `results` has the runs that this process finished, each with its result and its seconds.
        """

    @property
    def way_on(self) -> str:
        """The command that goes on with the job after it was stopped."""
        return command("gorl", "resume", self.directory)

    def goes_on(self, runs: Sequence[Run], rows: Sequence[list[Row]]) -> bool:
        """Called after each evaluation with the rows of each run. With `False` the runs stop with a checkpoint."""
        return True

    def moved(self, directory: pathlib.Path) -> Self:
        """The same job in another directory."""
        runs = {
            name: dataclasses.replace(run, directory=directory / run.directory.relative_to(self.directory))
            for name, run in self.runs.items()
        }
        return dataclasses.replace(self, directory=directory, runs=runs)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other processes from writing to the job."""
        with contextlib.ExitStack() as stack:
            for directory in dict.fromkeys([self.directory, *(run.directory for run in self.runs.values())]):
                if directory.exists():  # those of a new sweep are made later
                    stack.enter_context(only_writer(directory))
            yield


@final
class OneRun(Job):
    """A run of `gorl train`."""

    @staticmethod
    def of(run: Run) -> "OneRun":
        return OneRun(run.directory, {"": run})

    def create(self) -> None:
        self.runs[""].create()

    @property
    def is_finished(self) -> bool:
        return self.runs[""].is_finished

    def finish(self, results: Sequence[tuple[Run, gorl.Result, float]]) -> int:
        ((run, result, seconds),) = results
        with contextlib.suppress(OSError):  # every file is written, whether the table can be shown or not
            summary(run, result, seconds)
        return DIVERGED if np.any(result.diverged_at >= 0) else 0


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs with configs of one structure. They train side by side, in programs that are compiled once."""

    runs: Mapping[str, Run]
    config: gorl.Config
    steps: Iterator[tuple[gorl.ScheduleStep, gorl.TrainState]]
    devices_of_a_seed: int
    state: gorl.TrainState | None = None
    note: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, runs: Mapping[str, Run]) -> "Group":
        """The same group, with the runs of its names in another directory, or longer."""
        return dataclasses.replace(self, runs={name: runs[name] for name in self.runs})


def check_options(run: Run) -> None:
    """Checks what a command was told of a run, other than its config.

    **Raises:**

    `gorl.InputError`
    """
    if run.seeds < 1:
        raise gorl.InputError(f"--seeds must be at least 1, not {run.seeds}.")
    if not 0 <= run.first_seed <= 2**32 - run.seeds:
        raise gorl.InputError(f"--seed must be at least 0 and below 2^32, not {run.first_seed}.")
    if not run.checkpoint_interval >= 0:
        raise gorl.InputError(f"--checkpoint-every must be at least 0 seconds, not {run.checkpoint_interval:g}.")
    check_loggers(run.log)


def begin(job: Job, is_named: bool, mesh: Mesh | None = None, processes: Processes = ALONE) -> int:
    """Trains a new job and returns the exit code of the process. If a person named its directory, it must be empty."""
    check_options(next(iter(job.runs.values())))
    configs = {name: run.config for name, run in job.runs.items()}
    # This raises if a config cannot be written.
    processes.compare(_in_common(job, configs, mesh))
    if processes.is_first:
        check_new(job.directory, is_named)
    # This checks the rest of the input.
    groups = [make_group(job.runs, configs, names, mesh, is_new=True) for names in by_structure(configs)]
    processes.meet()  # before anything is written
    if not processes.is_first:
        processes.meet()
        return accompany(groups, processes)
    job = job.moved(make_directory(job.directory, is_named))
    with job.writing():
        check_new(job.directory, is_named=True)  # another process may have used it since the first check
        job.create()
        processes.meet()  # the directory is there
        return train_groups(job, [group.of(job.runs) for group in groups], processes)


def resume(job: Job, total_steps: int | None = None, mesh: Mesh | None = None, processes: Processes = ALONE) -> int:
    """Continues a job from its newest checkpoints, and returns the exit code of the process.

    With `total_steps`, the environment steps of each seed in the whole run, it continues beyond its end.
    """
    check_loggers(next(iter(job.runs.values())).log)
    configs = {
        name: run.config if total_steps is None else gorl.lengthen(run.config, total_steps)
        for name, run in job.runs.items()
    }
    left = {name: configs[name] for name, run in job.runs.items() if not run.is_finished or configs[name] != run.config}
    if not left and job.is_finished:
        if not isinstance(job, OneRun):
            raise gorl.InputError(
                f"the sweep in {job.directory} is finished: give --steps and one of its runs to go on."
            )
        steps = sum(job.runs[""].config.stage_steps)
        raise gorl.InputError(
            f"the run in {job.directory} is finished: give --steps, and more of them than its {steps:,}, to go on."
        )
    with job.writing() if processes.is_first else contextlib.nullcontext():
        processes.compare(_in_common(job, left, mesh))
        # This checks that the runs can continue.
        groups = [
            make_group(job.runs, left, names, mesh, is_new=False, total_steps=total_steps, processes=processes)
            for names in by_structure(left)
        ]
        processes.meet()  # before anything is written
        if not processes.is_first:
            return accompany(groups, processes)
        runs = {
            name: run if configs[name] == run.config else run.lengthen(configs[name]) for name, run in job.runs.items()
        }
        return train_groups(job, [group.of(runs) for group in groups], processes)


def _in_common(job: Job, configs: Mapping[str, gorl.Config], mesh: Mesh | None) -> dict[str, Any]:
    """What the processes that train a job have to have in common, by its name in a sentence."""
    installed, run = versions(), next(iter(job.runs.values()))
    return {
        "the versions of gorl and JAX": {name: installed[name] for name in ("gorl", "jax", "jaxlib")},
        "the config": {name: config.to_json() for name, config in configs.items()},
        "the seeds": [run.first_seed, run.seeds],
        "the decoder to begin with": None if run.given is None else _digest(run.given.policy.decoder),
        "the mesh": None if mesh is None else dict(mesh.shape),
        "the checkpoints": {name: [path.name for path in job.runs[name].checkpoints()] for name in configs},
    }


def _digest(decoder: gorl.AbstractDecoder) -> str:
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(decoder) if eqx.is_array(leaf)]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def make_group(
    runs: Mapping[str, Run],
    configs: Mapping[str, gorl.Config],
    names: Sequence[str],
    mesh: Mesh | None = None,
    *,
    is_new: bool,
    total_steps: int | None = None,
    processes: Processes = ALONE,
) -> Group:
    """A group of the runs of these names, with these configs, which are longer than those of the runs if `total_steps`
    is given.

    **Raises:**

    `gorl.InputError` if they cannot begin, or go on from their checkpoints if they are not new.
    """
    chosen, config_of_each = [runs[name] for name in names], [configs[name] for name in names]
    config, keys = batch(config_of_each, chosen[0].seeds), jnp.tile(chosen[0].keys, len(names))
    devices = devices_of_a_seed(config, keys, mesh)
    state, note = (None, {}) if is_new else _restored(chosen, config_of_each, total_steps, devices, processes)
    if state is None:
        steps = gorl.iterate(config, keys, decoder=chosen[0].first_decoder(), mesh=mesh)
    else:
        steps = gorl.iterate(config, state, mesh=mesh)
    return Group(dict(zip(names, chosen, strict=True)), config, steps, devices, state, note)


def _restored(
    runs: Sequence[Run],
    configs: Sequence[gorl.Config],
    total_steps: int | None,
    devices: int,
    processes: Processes,
) -> tuple[gorl.TrainState | None, Mapping[str, Any]]:
    """The state that runs continue from, `None` at their beginning, and its note."""
    if processes.is_first:
        for run in runs:
            run.remove_unfinished()
    restored = restore(runs, configs)
    if restored is None:
        if runs[0].is_finished:
            raise gorl.InputError(
                f"the run in {runs[0].directory} is finished and has no checkpoint any more, so it cannot get longer: "
                f"begin a new one with --steps {total_steps}."
            )
        say(f"{runs[0].directory} has no checkpoint yet: the run begins")
        return None, {}
    before, now = restored[1]["versions"], versions()
    changed = [f"{name} was {before[name]} and is {now[name]}" for name in now if before.get(name) != now[name]]
    if (devices_before := restored[1].get("devices_of_a_seed", 1)) != devices:
        changed.append(f"a seed was on {plural(devices_before, 'device')} and is on {devices}")
    if changed:
        say(f"it will not be the same bit for bit as if it had not been stopped: {', '.join(changed)}")
    return restored


def by_structure(configs: Mapping[str, gorl.Config]) -> list[list[str]]:
    """The names of configs in groups that differ in numbers only, which take one compilation."""
    groups: dict[object, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(jax.tree.structure(config), []).append(name)
    return list(groups.values())


def batch(configs: Sequence[gorl.Config], seeds: int) -> gorl.Config:
    """One config from several that differ in numbers only. Each number is repeated for the seeds."""

    def join(*leaves: float) -> object:
        return leaves[0] if len(set(leaves)) == 1 else jnp.repeat(jnp.asarray(leaves), seeds)

    return jax.tree.map(join, *configs)


# --- The loop. ---


def train_groups(job: Job, groups: Sequence[Group], processes: Processes = ALONE) -> int:
    """Trains one group of runs after the other, and returns the exit code of the process."""
    for env in dict.fromkeys(run.config.env for run in job.runs.values()):
        say_placeholders(env)
    results: list[tuple[Run, gorl.Result, float]] = []
    try:
        for group in groups:
            outcome = _follow(job, group, processes)
            if isinstance(outcome, int):
                return outcome
            results += outcome
    except GoneError:
        say(
            f"{job.directory} has been moved, deleted or replaced, so the run stops. What it did since its newest "
            "checkpoint is lost. If it was moved, go on with gorl resume and its new directory; if it was deleted, "
            "begin a new run"
        )
        return 1
    try:
        return job.finish(results)
    except OSError as error:
        return _unwritten(job, error)


def accompany(groups: Sequence[Group], processes: Processes) -> int:
    """Goes through the same steps as process 0 does in [`train_groups`][], and computes this process's part of them.

    It writes nothing, and returns the exit code of the process.
    """
    for group in groups:
        state, results, exit_code = group.state, None, None
        with Stop(_STOPPING) as stop:
            for step, state in group.steps:
                jax.block_until_ready(state.index)
                if step.phase != gorl.Phase.EVALUATE:
                    stop.heed()
                results = processes.results(step, state, results)
                exit_code, is_due = processes.agree(stop.exit_code, False)
                if is_due:
                    processes.whole(state)
                if exit_code is not None:
                    break
        if exit_code is not None:
            break
        assert state is not None
        processes.whole(state)
    return processes.wait_for_end()


def _unwritten(job: Job, error: OSError) -> int:
    why = f"the results could not be written to {job.directory} ({error.strerror})"
    say(f"{why}: {advice(error)}, and {job.way_on}")
    return 1


def _follow(job: Job, group: Group, processes: Processes) -> list[tuple[Run, gorl.Result, float]] | int:
    """Goes through the steps that are left, and writes checkpoints, curves and results.

    It returns the result and the seconds of each run, or an exit code if a signal stopped it or a disk is full. It
    raises `GoneError` if a directory is gone. Runs that the job does not let go on stop without a result.
    """
    runs, config, state = list(group.runs.values()), group.config, group.state
    seconds_before, wall_seconds = group.note.get("seconds", 0.0), list(group.note.get("wall_seconds", ()))
    began = last_saved = time.monotonic()
    is_saved, exit_code, results = state is not None, None, None

    def clock() -> float:
        return seconds_before + time.monotonic() - began

    def checkpoint(state: gorl.TrainState, then: str = _TRY_AGAIN) -> bool:
        """Writes a checkpoint. If that fails the run is still sound, so it goes on and tries again."""
        nonlocal last_saved
        last_saved = time.monotonic()
        note = {"seconds": clock(), "wall_seconds": wall_seconds, "versions": versions()}
        note["devices_of_a_seed"] = group.devices_of_a_seed
        return try_to_write(runs, "no checkpoint", lambda: save(runs, state, note), then)

    def rows(state: gorl.TrainState) -> list[list[Row]]:
        return curve_rows(runs, state, wall_seconds)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop(_STOPPING))
        so_far = rows(state) if state is not None else [[] for _ in runs]
        loggers = [Loggers(run, of_run) for run, of_run in zip(runs, so_far, strict=True)]
        for logger in loggers:
            stack.callback(logger.close)
        progress = stack.enter_context(_progress(job, group))
        for step, state in group.steps:
            jax.block_until_ready(state.index)
            is_saved = False
            if step.phase != gorl.Phase.EVALUATE:  # before the first iteration there is nothing to lose
                stop.heed()
            results = processes.results(step, state, results)
            progress.advance(step, results)
            if step.phase == gorl.Phase.EVALUATE and not step.is_final:
                wall_seconds.append(round(clock(), 3))
                so_far = rows(results)
                for run, of_run, logger in zip(runs, so_far, loggers, strict=True):
                    write = functools.partial(gorl.internal.write_whole, run.curve_file, table(of_run))
                    try_to_write([run], "no curve.csv", write, _TRY_AGAIN)
                    logger.write(of_run[-run.seeds :])
                if not job.goes_on(runs, so_far) and checkpoint(state):
                    return []
            is_due = time.monotonic() - last_saved >= runs[0].checkpoint_interval
            exit_code, is_due = processes.agree(stop.exit_code, is_due)
            if is_due:
                is_saved = checkpoint(processes.whole(state))
            if exit_code is not None:
                break
    if exit_code is not None:
        what = "stopped" if is_saved else "stopped, and the latest steps could not be saved"
        say(f"{what}; go on with: {job.way_on}")
        return exit_code
    assert state is not None
    state = processes.whole(state)
    if not is_saved:
        checkpoint(state, "gorl resume --steps would go on from the one before")
    try:
        return _write_results(runs, gorl.finish(config, state), rows(state), clock())
    except OSError as error:
        return _unwritten(job, error)


def _write_results(
    runs: Sequence[Run], result: gorl.Result, rows: Sequence[list[Row]], seconds: float
) -> list[tuple[Run, gorl.Result, float]]:
    """Writes the results of each run. The summary comes last, and says that the run is finished."""
    written = []
    for run, of_run, rows_of_run in zip(runs, parts(result, runs), rows, strict=True):
        run.check()
        try:
            gorl.internal.write_whole(run.curve_file, table(rows_of_run))
            gorl.save_policy(run.policies_file, of_run.policy, run.config)
            figure = learning_curves([_curve(run, of_run)], title=f"{run.method} on {run.config.env}")
            gorl.internal.write_whole(run.picture_file, encode(figure, ".png"))
            gorl.internal.write_whole(run.summary_file, _summary(run, of_run, seconds))
        except OSError:
            run.check()
            raise
        run.keep_newest_checkpoints(1)
        finish_report(run)
        written.append((run, of_run, seconds))
    return written


def _progress(job: Job, group: Group) -> Progress:
    run, *others = group.runs.values()
    seeds = plural(run.seeds, "seed")
    title = f"{plural(1 + len(others), 'setting')}, {seeds} each" if len(job.runs) > 1 else seeds
    names = [f"{name}, seed {seed}".removeprefix(", ") for name in group.runs for seed in run.seed_numbers]
    return Progress(run.config, f"{run.method} on {run.config.env}: {title}", names)


def curve_rows(runs: Sequence[Run], state: gorl.TrainState, wall_seconds: list[float]) -> list[list[Row]]:
    """The rows of `curve.csv` of each run: one for each seed and evaluation, but for that of the best policy."""
    config = runs[0].config
    points, evaluated_at = gorl.make_schedule(config).curve, np.asarray(state.evaluated_at)[0, :-1]
    evaluations = np.flatnonzero(evaluated_at >= 0)  # those of all seeds
    returns, diverged_at = np.asarray(state.returns), np.asarray(state.diverged_at)
    divergence = [gorl.Divergence(kind).name.lower() for kind in np.asarray(state.divergence).tolist()]
    metrics = {name: np.asarray(metric) for name, metric in state.metrics.items()}

    def row(index: int, seed: int, number: int) -> Row:
        evaluation = evaluations[number]
        iterations, at = int(evaluated_at[evaluation]), int(diverged_at[index])
        of_seed, has_diverged = returns[index, evaluation], 0 <= at <= iterations
        return {
            "seed": seed,
            "stage": int(points.stage[evaluation]),
            "env_steps": iterations * config.steps_per_iteration,
            "wall_seconds": wall_seconds[number],
            "return_mean": float(of_seed.mean()),
            "return_std": float(of_seed.std()),
            "return_min": float(of_seed.min()),
            "return_max": float(of_seed.max()),
            "diverged_at": at * config.steps_per_iteration if has_diverged else "",
            "divergence": divergence[index] if has_diverged else "",
            **{name: float(values[index, evaluation]) for name, values in metrics.items()},
        }

    def of_run(first: int, run: Run) -> list[Row]:
        seeds = list(enumerate(run.seed_numbers, first))
        return [row(index, seed, number) for number in range(len(wall_seconds)) for index, seed in seeds]

    return [of_run(place * run.seeds, run) for place, run in enumerate(runs)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _curve(run: Run, result: gorl.Result) -> RunCurve:
    curve = result.curve
    steps, returns = curve.env_steps[0], np.asarray(curve.mean_return)
    has_been = steps >= 0
    return RunCurve(run.method, steps[has_been], np.asarray(curve.stage[0])[has_been], returns[:, has_been])


def _summary(run: Run, result: gorl.Result, wall_seconds: float) -> str:
    returns = np.asarray(result.returns)
    diverged_at = np.asarray(result.diverged_at, np.int64) * run.config.steps_per_iteration
    divergence = np.asarray(result.divergence).tolist()
    diverged = [(str(run.seed_numbers[index]), index) for index in np.flatnonzero(diverged_at >= 0).tolist()]
    content = {
        "method": run.method,
        "env_steps": run.env_steps,
        "best_policy_return": {
            str(seed): float(of_seed.mean()) for seed, of_seed in zip(run.seed_numbers, returns, strict=True)
        },
        "best_policy_return_mean": float(returns.mean()),
        "episodes_per_seed": returns.shape[1],
        "diverged_at": {seed: int(diverged_at[index]) for seed, index in diverged},
        "divergence": {seed: gorl.Divergence(divergence[index]).name.lower() for seed, index in diverged},
        "wall_seconds": round(wall_seconds, 1),
        "device": str(jax.devices()[0]),
        "versions": versions(),
    }
    return as_json(content)
