"""A run on disk: `gorl train` and `gorl sweep` write it, and every other command reads it."""

import contextlib
import csv
import dataclasses
import functools
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

import gorl

from ._process import advice, command, say

_FORMAT = 2
_OLDEST_FORMAT = 2  # gorl reads every format from this one on
RUN, SWEEP, TUNE = "run.json", "sweep.json", "tune.json"
_CONFIG, _CHECKPOINTS, _LOCK = "config.json", "checkpoints", ".lock"
_NUM_CHECKPOINTS = 2  # of a run that is not finished
# The fields of a run that `run.json` holds, and their types.
_FIELDS: dict[str, Callable[[Any], Any]] = {
    "method": str,
    "first_seed": int,
    "seeds": int,
    "checkpoint_interval": float,
    "log": tuple,
    "identifier": str,
}
# The columns of `curve.csv` that say where a row is; the others are metrics.
NO_METRICS = frozenset(("seed", "stage", "env_steps", "wall_seconds", "diverged_at", "divergence"))
_COPY = "copy it to another disk and go on there"
# The results of a run depend on these as well.
_PACKAGES = (
    *("gorl", "jax", "jaxlib", "equinox", "optax", "diffrax", "numpy"),
    *("mujoco", "mujoco-mjx", "brax", "playground"),
)

SeedsTree = TypeVar("SeedsTree", gorl.TrainState, gorl.Result)


@dataclasses.dataclass(frozen=True)
class GivenDecoder:
    """The decoder that a run begins with: that of a policy.

    **Arguments:**

    - `policy`: the policy.
    - `config`: of the policy.
    """

    policy: gorl.Policy
    config: gorl.Config

    @staticmethod
    def of(directory: pathlib.Path) -> "GivenDecoder":
        """That of the best policy in the directory of `gorl fit`, or of any other run."""
        run = Run.open(directory)
        policy = run.policy(None)
        decoder = policy.decoder
        if not isinstance(decoder, gorl.StagedDecoder) or not bool(decoder.fitted):
            raise gorl.InputError(
                f"--decoder {directory}: the policy there has no decoder that was fitted. Give what gorl fit wrote, or "
                "a run of a method with a decoder that came to its second stage."
            )
        return GivenDecoder(policy, run.config)

    def begin(self, preset: gorl.Config) -> gorl.Config:
        """A preset for a run that begins with the decoder."""
        return gorl.replace(preset, {"decoder": self.config.decoder, "starts_fitted": True})


class GoneError(Exception):
    """A directory no longer holds the run that a command writes to it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and its directory.

    **Arguments:**

    - `directory`: holds every file of the run.
    - `config`: the config.
    - `method`: the name of the method.
    - `first_seed`, `seeds`: the first seed, and the number of seeds.
    - `checkpoint_interval`: seconds between two checkpoints.
    - `log`: the names of the loggers.
    - `identifier`: tells the run from all others.
    - `given`: the decoder that a new run begins with; `None` for none. Later it is in a file.
    """

    directory: pathlib.Path
    config: gorl.Config
    method: str
    first_seed: int
    seeds: int
    checkpoint_interval: float
    log: tuple[str, ...] = ()
    identifier: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    given: GivenDecoder | None = dataclasses.field(default=None, compare=False, repr=False)

    @staticmethod
    def open(directory: pathlib.Path) -> "Run":
        """The run in a directory."""
        if (directory / SWEEP).exists():
            raise gorl.InputError(f"{directory} is a sweep: give the directory of one of its runs.")
        content = read_description(directory, RUN)
        text = _read(directory, _CONFIG)
        try:
            fields = {name: kind(content[name]) for name, kind in _FIELDS.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(directory / RUN) from error
        if ":" in fields["method"]:
            gorl.internal.find_method(fields["method"])  # imports the classes that the config names
        try:
            config = gorl.Config.from_json(text)
        except gorl.InputError as error:
            raise gorl.InputError(f"{directory / _CONFIG} cannot be understood: {error}") from error
        return Run(directory, config, **fields)

    def create(self) -> None:
        """Makes the directory, and writes what the run is."""
        out = f"--out {self.directory}"
        _write(self.directory / _CONFIG, self.config.to_json(), out)
        try:
            if self.given is not None:
                try:
                    gorl.save_policy(self.decoder_file, self.given.policy, self.given.config)
                except OSError as error:
                    raise _unwritable(out, error, "give another directory") from error
            write_description(self.directory / RUN, {name: getattr(self, name) for name in _FIELDS})
        except gorl.InputError:
            for path in (self.directory / _CONFIG, self.decoder_file):
                path.unlink(missing_ok=True)
            raise

    def lengthen(self, config: gorl.Config) -> "Run":
        """The same run with a longer config. One file changes, so a kill leaves either the old run or the new one."""
        _write(self.directory / _CONFIG, config.to_json(), f"the run in {self.directory}", _COPY)
        return dataclasses.replace(self, config=config)

    def check(self) -> None:
        """Raises `GoneError` if the directory has been moved, deleted or replaced."""
        try:
            found = (self.directory / RUN).read_text()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise GoneError from error
        except OSError:
            return  # this says nothing about the directory; the next write will
        if self.identifier not in found:
            raise GoneError

    @property
    def keys(self) -> Key[jax.Array, " seeds"]:
        """A random key for each seed."""
        return jax.vmap(jax.random.key)(jnp.asarray(self.seed_numbers, jnp.uint32))

    @property
    def seed_numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def env_steps(self) -> int:
        """Environment steps of each seed in the whole run."""
        return sum(self.config.stage_iterations) * self.config.steps_per_iteration

    @property
    def is_finished(self) -> bool:
        """Whether every file of a finished run is there. A summary from before the run got longer does not count.

        That of `gorl fit` has no steps, as nothing was trained.
        """
        return self.summary_file.exists() and self.summary()["env_steps"] in (0, self.env_steps)

    @property
    def is_at_end(self) -> bool:
        """Whether every evaluation in `curve.csv` is there, the results or not."""
        rows = self.curve() if self.curve_file.exists() else []
        return bool(rows) and rows[-1].get("env_steps") == str(self.env_steps)

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        try:
            return json.loads(self.summary_file.read_text())
        except (OSError, ValueError) as error:
            raise damaged(self.summary_file) from error

    @property
    def curve_file(self) -> pathlib.Path:
        """A row for each seed and evaluation."""
        return self.directory / "curve.csv"

    @property
    def picture_file(self) -> pathlib.Path:
        """The learning curve."""
        return self.directory / "curve.png"

    @property
    def policies_file(self) -> pathlib.Path:
        """The best policies. It appears when the run is finished."""
        return self.directory / "policies.eqx"

    @property
    def decoder_file(self) -> pathlib.Path:
        """The policy whose decoder the run began with, where it was given one."""
        return self.directory / "decoder.eqx"

    def first_decoder(self) -> gorl.AbstractDecoder | None:
        """The decoder that the run begins with, where it was given one."""
        if self.given is not None:
            return self.given.policy.decoder
        return gorl.load_policy(self.decoder_file).decoder if self.decoder_file.exists() else None

    @property
    def summary_file(self) -> pathlib.Path:
        """The returns of the best policies. It is written last."""
        return self.directory / "summary.json"

    @property
    def report_file(self) -> pathlib.Path:
        """The page of `gorl train --report`."""
        return self.directory / "report.html"

    # --- Checkpoints. ---

    def save(self, state: gorl.TrainState, note: dict[str, Any]) -> pathlib.Path:
        """Writes a checkpoint, and returns its path."""
        directory = self.directory / _CHECKPOINTS
        directory.mkdir(exist_ok=True)
        path = directory / f"{int(np.max(state.index)):08d}.eqx"
        gorl.save_state(path, state, self.config, note)
        return path

    def keep_newest_checkpoints(self, count: int = _NUM_CHECKPOINTS) -> None:
        """Removes all checkpoints but the newest ones."""
        for path in self.checkpoints()[:-count]:
            path.unlink(missing_ok=True)

    def checkpoints(self) -> list[pathlib.Path]:
        """The checkpoints, the oldest first."""
        return sorted((self.directory / _CHECKPOINTS).glob("[0-9]*.eqx"))

    def remove_unfinished(self) -> None:
        """Removes files that a killed process left half written."""
        for directory in (self.directory, self.directory / _CHECKPOINTS):
            gorl.internal.remove_unfinished(directory)

    # --- Results. ---

    def policies(self) -> gorl.Policy:
        """The best policies, one for each seed. If the run is not finished, it says so and takes the best so far."""
        if self.policies_file.exists():
            if not self.is_finished:
                say("this run is not finished: these are the best policies of the shorter run that it continues")
            return gorl.load_policy(self.policies_file)
        restored = restore([self], [self.config])
        if restored is None:
            raise gorl.InputError(
                f"{self.directory} has neither {self.policies_file.name} nor a checkpoint yet: train on with "
                f"{command('gorl', 'resume', self.directory)}."
            )
        state, _ = restored
        done = int(np.max(state.index)) / len(gorl.make_schedule(self.config))
        say(f"this run is not finished: these are the best policies of its latest stage, {done:.0%} of the way")
        return gorl.finish(self.config, state).policy

    def changed_env(self, commands: Sequence[str] | None, randomization: str | None = None) -> gorl.EnvConfig:
        """The environment of the run, with some of its commands fixed, and another randomisation."""
        changes: dict[str, Any] = {}
        if commands:
            changes["commands"] = " ".join(commands)
        if randomization is not None:
            changes["randomization"] = randomization
        return gorl.replace(self.config.env, changes) if changes else self.config.env

    def policy(self, seed: int | None) -> gorl.Policy:
        """The best policy of one seed. Without a seed it takes the best one, or the first, and says which."""
        index = self.index(self.best_seed() if seed is None else seed)
        return gorl.of_seed(self.policies(), index)

    def index(self, seed: int) -> int:
        """The index of a seed on the axis of seeds."""
        if seed not in self.seed_numbers:
            last = self.seed_numbers[-1]
            held = f"seed {last}" if self.seeds == 1 else f"seeds {self.first_seed} to {last}"
            raise gorl.InputError(f"there is no seed {seed} in {self.directory}: it holds {held}.")
        return self.seed_numbers.index(seed)

    def best_seed(self) -> int:
        """The seed with the best return, or the first; it says which."""
        if self.seeds == 1:
            return self.first_seed
        if not self.is_finished:
            say(f"the policy of seed {self.first_seed}, the first; --seed takes another")
            return self.first_seed
        returns = self.summary()["best_policy_return"]
        best = max(returns, key=lambda seed: -math.inf if returns[seed] is None else returns[seed])
        say(f"the policy of seed {best}, the best of {self.seeds}; --seed takes another")
        return int(best)

    def curve(self) -> list[dict[str, str]]:
        """The rows of `curve.csv` so far."""
        try:
            with self.curve_file.open(newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError as error:
            if self.is_finished and not {"fitted_to", "distilled_from"}.isdisjoint(self.summary()):
                raise gorl.InputError(
                    f"{self.directory} has no {self.curve_file.name}, since its decoder was fitted and its policy not "
                    "trained: give a run of gorl train."
                ) from error
            raise gorl.InputError(
                f"{self.directory} has no {self.curve_file.name} yet, since nothing was evaluated: train on with "
                f"{command('gorl', 'resume', self.directory)}."
            ) from error


# --- Several runs that train side by side, as one state. ---


def save(runs: Sequence[Run], state: gorl.TrainState, note: dict[str, Any]) -> None:
    """Writes a checkpoint for each run and removes old ones. If one cannot be written, there is none for any."""
    written: list[pathlib.Path] = []
    try:
        for run, part in zip(runs, parts(state, runs), strict=True):
            written.append(run.save(part, note))
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for run in runs:
        run.keep_newest_checkpoints()


def restore(runs: Sequence[Run], configs: Sequence[gorl.Config]) -> tuple[gorl.TrainState, dict[str, Any]] | None:
    """The state of all runs from their newest undamaged checkpoint, and its note; `None` if a run has none yet.

    It says so if a checkpoint is damaged. The configs are those of the runs, or longer ones.
    """
    checkpoints = [{path.name: path for path in run.checkpoints()} for run in runs]
    if not all(checkpoints):
        return None
    shared = sorted(set.intersection(*map(set, checkpoints)))
    for name in reversed(shared):
        loaded = []
        for paths, config in zip(checkpoints, configs, strict=True):
            try:
                loaded.append(gorl.load_state(paths[name], config))
            except gorl.DamagedFileError:
                if name != shared[0]:
                    say(f"the checkpoint {paths[name]} is damaged, so the one before it is used")
                break
        else:
            states = [state for state, _ in loaded]
            joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states) if len(states) > 1 else states[0]
            return joined, loaded[0][1]
    raise gorl.InputError(
        f"no checkpoint in {runs[0].directory / _CHECKPOINTS} is undamaged: copy them again, or begin a new run."
    )


def try_to_write(runs: Sequence[Run], what: str, write: Callable[[], object], then: str) -> bool:
    """Writes to the directories of runs, and returns whether that worked. Raises `GoneError` if one is gone.

    If it fails, it prints a sentence: `what`, such as "no checkpoint", begins it, and `then` ends it.
    """
    for run in runs:
        run.check()
    try:
        write()
    except OSError as error:
        for run in runs:
            run.check()
        say(f"{what} could be written ({error.strerror}): {then}")
        return False
    return True


def parts(tree: SeedsTree, runs: Sequence[Run]) -> list[SeedsTree]:
    """The part of each run in a state or a result, whose leaves have an axis of all seeds in front.

    It is sliced on the host, where nothing has to be compiled for that.
    """
    if len(runs) == 1:
        return [tree]

    def part(leaf: jax.Array, index: int) -> Any:
        here = slice(index * runs[index].seeds, (index + 1) * runs[index].seeds)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return np.asarray(leaf)[here]
        kind = jax.random.key_impl(leaf)
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(leaf))[here]), impl=kind)

    return [jax.tree.map(functools.partial(part, index=index), tree) for index in range(len(runs))]


# --- Directories. ---


def say_placeholders(env: gorl.EnvConfig) -> None:
    """Says it if pictures of a robot will lack meshes."""
    if missing := gorl.placeholder_meshes(gorl.load_environment(env)):
        say(
            f"{env}: {len(missing)} of its meshes are not on this machine, so pictures show small placeholders; the "
            "physics is complete"
        )


def read_description(directory: pathlib.Path, name: str) -> dict[str, Any]:
    """What `run.json` or `sweep.json` holds."""
    if not directory.is_dir():
        raise gorl.InputError(f"{directory} is no directory: give the directory of a run of gorl train.")
    text = _read(directory, name)
    try:
        content = json.loads(text)
        form, before = int(content["format"]), content["versions"]["gorl"]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(directory / name) from error
    if form > _FORMAT:
        raise gorl.InputError(
            f"the run in {directory} is of format {form}, and this version of gorl reads none newer than {_FORMAT}: "
            "install a newer gorl."
        )
    if form < _OLDEST_FORMAT:
        raise gorl.InputError(f"the run in {directory} {gorl.internal.written_by(before)}")
    return content


def write_description(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes `run.json` or `sweep.json`."""
    content = {"format": _FORMAT, **content, "versions": versions()}
    _write(path, json.dumps(content, indent=2) + "\n", f"--out {path.parent}")


def _read(directory: pathlib.Path, name: str) -> str:
    try:
        return (directory / name).read_text()
    except FileNotFoundError as error:
        raise gorl.InputError(f"{directory} is no run of gorl train, or not a whole one: it has no {name}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise gorl.InputError(f"{directory / name} cannot be read: {error}.") from error


def damaged(path: pathlib.Path) -> gorl.InputError:
    """The error for a file that holds something else than gorl wrote."""
    return gorl.InputError(f"{path} is not what gorl train wrote: copy it again.")


def check_new(directory: pathlib.Path, is_named: bool) -> None:
    """Checks that results can go to a directory. A directory that a person named must be empty."""
    if is_named and directory.exists():
        if not directory.is_dir():
            raise gorl.InputError(f"--out {directory} is a file: give a directory.")
        if any(path.name != _LOCK for path in directory.iterdir()):
            way_out = "give a new or an empty directory"
            if (directory / RUN).exists() or (directory / SWEEP).exists():
                way_out += f", or go on with {command('gorl', 'resume', directory)}"
            raise gorl.InputError(f"--out {directory} is already in use: {way_out}.")
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise gorl.InputError(
            f"--out {directory} cannot be written, because {existing} cannot: give another directory."
        )


def make_directory(directory: pathlib.Path, is_named: bool) -> pathlib.Path:
    """Makes a directory for results. If no person named it and another process took the name, it adds a number."""
    try:
        if is_named:
            directory.mkdir(parents=True, exist_ok=True)
            return directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        made, number = directory, 1
        while True:
            try:
                made.mkdir()  # succeeds in only one of several processes
                return made
            except FileExistsError:
                number += 1
                made = directory.with_name(f"{directory.name}-{number}")
    except OSError as error:
        raise gorl.InputError(f"--out {directory} cannot be made: {error.strerror}.") from error


def new_directory(*names: str) -> pathlib.Path:
    """A directory in `runs/`, named after its content and the time."""
    name = "-".join(names).replace("/", "-").replace(":", "-")
    return pathlib.Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextlib.contextmanager
def only_writer(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing to a directory."""
    lock = filelock.FileLock(directory / _LOCK, mode=0o644)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise gorl.InputError(f"another process writes to {directory}: wait until it ends, or stop it.") from error
    except OSError as error:
        raise _unwritable(str(directory), error, _COPY) from error
    try:
        yield
    finally:
        lock.release()


def _write(path: pathlib.Path, content: str, what: str, otherwise: str = "give another directory") -> None:
    """Writes a file, or raises an error that calls it `what`."""
    try:
        path.parent.mkdir(exist_ok=True)
        gorl.internal.write_whole(path, content)
    except OSError as error:
        raise _unwritable(what, error, otherwise) from error


def _unwritable(what: str, error: OSError, otherwise: str) -> gorl.InputError:
    return gorl.InputError(f"{what} cannot be written ({error.strerror}): {advice(error)}, or {otherwise}.")


@functools.cache
def versions() -> dict[str, str]:
    """The versions and the device. With the same ones, results are the same bit for bit."""
    return {name: version(name) for name in _PACKAGES} | {"device": jax.devices()[0].device_kind}
