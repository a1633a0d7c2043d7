"""A run on disk: what `gorl train` fills, and every other command reads."""

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
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

import gorl

from ._place import Place, advice
from ._say import command, say

_FORMAT = 2
_OLDEST_FORMAT = 2  # every format from here on is read
_RUN, _CONFIG, _CHECKPOINTS, _LOCK = "run.json", "config.json", "checkpoints", ".lock"
_KEPT = 2  # checkpoints
_PACKAGES = (
    "gorl",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "diffrax",
    "mujoco",
    "mujoco-mjx",
    "brax",
    "playground",
    "numpy",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is, and where.

    **Arguments:**

    - `directory`: where everything about it is.
    - `config`: what is trained.
    - `method`: what it is called.
    - `first_seed`, `seeds`: the keys are those of this many seeds from the first one on.
    - `checkpoint_interval`: seconds between two checkpoints.
    - `log`: the names of the loggers.
    - `identifier`: tells the run from all others.
    """

    directory: pathlib.Path
    config: gorl.Config
    method: str
    first_seed: int
    seeds: int
    checkpoint_interval: float
    log: tuple[str, ...] = ()
    identifier: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    @staticmethod
    def open(directory: pathlib.Path) -> "Run":
        """The run in a directory.

        **Raises:**

        `gorl.InputError` if there is none, or a file of it is missing or not to be understood.
        """
        if not directory.is_dir():
            raise gorl.InputError(f"{directory} is no directory: give the directory of a run of gorl train.")
        texts = {}
        for name in (_RUN, _CONFIG):
            try:
                texts[name] = (directory / name).read_text()
            except FileNotFoundError as error:
                raise gorl.InputError(
                    f"{directory} is no run of gorl train, or not a whole one: it has no {name}."
                ) from error
            except (OSError, UnicodeDecodeError) as error:
                raise gorl.InputError(f"{directory / name} cannot be read: {error}.") from error
        try:
            content = json.loads(texts[_RUN])
            if content["format"] > _FORMAT:
                raise gorl.InputError(
                    f"the run in {directory} is of format {content['format']}, and this version of gorl reads none "
                    f"newer than {_FORMAT}: install a newer gorl."
                )
            if content["format"] < _OLDEST_FORMAT:
                raise gorl.InputError(f"the run in {directory} {gorl.internal.written_by(content['versions']['gorl'])}")
            method, log = str(content["method"]), tuple(content["log"])
            first_seed, seeds = int(content["first_seed"]), int(content["seeds"])
            interval, identifier = float(content["checkpoint_interval"]), str(content["identifier"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise gorl.InputError(f"{directory / _RUN} is not what gorl train wrote: copy it again.") from error
        if ":" in method:
            gorl.internal.find_method(method)  # its classes have to be there for the config to name them
        try:
            config = gorl.Config.from_json(texts[_CONFIG])
        except gorl.InputError as error:
            raise gorl.InputError(f"{directory / _CONFIG} cannot be understood: {error}") from error
        return Run(directory, config, method, first_seed, seeds, interval, log, identifier)

    def create(self) -> None:
        """Writes what the run is, which makes a run of its directory.

        **Raises:**

        `gorl.InputError` if it cannot be written; then nothing is left of it.
        """
        content = {
            "format": _FORMAT,
            "method": self.method,
            "first_seed": self.first_seed,
            "seeds": self.seeds,
            "checkpoint_interval": self.checkpoint_interval,
            "log": self.log,
            "identifier": self.identifier,
            "versions": versions(),
        }
        try:
            gorl.internal.write_whole(self.directory / _CONFIG, self.config.to_json())
            gorl.internal.write_whole(self.directory / _RUN, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            (self.directory / _CONFIG).unlink(missing_ok=True)
            raise gorl.InputError(
                f"--out {self.directory} cannot be written ({error.strerror}): {advice(error)}, or give another "
                "directory."
            ) from error

    def lengthen(self, config: gorl.Config) -> "Run":
        """Makes it a run with a longer config. One file says so: at every moment it is the one run or the other.

        **Returns:**

        The longer run.

        **Raises:**

        `gorl.InputError` if that cannot be written; then it is the run that it was.
        """
        try:
            gorl.internal.write_whole(self.directory / _CONFIG, config.to_json())
        except OSError as error:
            raise _unwritable(self._called, error) from error
        return dataclasses.replace(self, config=config)

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Only one process at a time writes to a run.

        **Raises:**

        `gorl.InputError` if another process does.
        """
        return only_writer(self.directory, self._called)

    @property
    def _called(self) -> str:
        return f"the run in {self.directory}"

    @property
    def place(self) -> Place:
        """Where it is written, as long as that is there."""
        return Place(self.directory / _RUN, self.identifier)

    @property
    def keys(self) -> Key[jax.Array, " seeds"]:
        """A random key for each seed."""
        return keys_of(self.seed_numbers)

    @property
    def seed_numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def env_steps(self) -> int:
        """Environment steps of each seed, when it is finished."""
        return sum(self.config.stage_iterations) * self.config.steps_per_iteration

    @property
    def is_finished(self) -> bool:
        """Whether everything has been written that a run leaves.

        A summary of what the run was before it got longer does not count.
        """
        if not self.summary_file.exists():
            return False
        return self._summary()["env_steps"] == self.env_steps

    def _summary(self) -> dict[str, Any]:
        try:
            return json.loads(self.summary_file.read_text())
        except (OSError, ValueError) as error:
            raise gorl.InputError(f"{self.summary_file} is not what gorl train wrote: copy it again.") from error

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
        """The best policies of a run that has come to its end."""
        return self.directory / "policies.eqx"

    @property
    def summary_file(self) -> pathlib.Path:
        """What the best policies earn. It is written last."""
        return self.directory / "summary.json"

    # --- Checkpoints. ---

    def save(self, state: gorl.TrainState, note: dict[str, Any]) -> None:
        """Writes a checkpoint, and removes those that are older than the one before.

        **Raises:**

        `OSError` if it cannot be written; then those that are there stay.
        """
        directory = self.directory / _CHECKPOINTS
        directory.mkdir(exist_ok=True)
        gorl.save_state(directory / f"{int(np.max(state.index)):08d}.eqx", state, self.config, note)
        for path in self._checkpoints()[:-_KEPT]:
            path.unlink(missing_ok=True)

    def restore(self) -> tuple[gorl.TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its note; `None` if the run has not come to its first one.

        It says so if one is damaged.

        **Raises:**

        `gorl.InputError` if there are checkpoints and none of them is whole, or the config has changed since.
        """
        paths = self._checkpoints()
        for path in reversed(paths):
            try:
                return gorl.load_state(path, self.config)
            except gorl.DamagedFileError:
                if path != paths[0]:
                    say(f"the checkpoint {path} is damaged, so the one before it is taken")
        if paths:
            raise gorl.InputError(
                f"no checkpoint in {paths[0].parent} is undamaged: copy them again, or begin a new run."
            )
        return None

    def clean(self) -> None:
        """Removes what a process that was killed had begun to write."""
        for directory in (self.directory, self.directory / _CHECKPOINTS):
            gorl.internal.remove_unfinished(directory)

    def keep_newest_checkpoint(self) -> None:
        """Removes the checkpoints of a run that is finished, but for the newest one, from which it can get longer."""
        for path in self._checkpoints()[:-1]:
            path.unlink(missing_ok=True)

    def _checkpoints(self) -> list[pathlib.Path]:
        return sorted((self.directory / _CHECKPOINTS).glob("[0-9]*.eqx"))

    # --- What came of it. ---

    def policies(self) -> gorl.Policy:
        """The best policies, one of each seed; of a run that has not come to its end, the best so far, and it says so.

        Of a run that is getting longer they are those that it had kept at its end before.

        **Raises:**

        `gorl.InputError` if there are none yet.
        """
        if self.policies_file.exists():
            if not self.is_finished:
                say("this run is not finished: these are the policies that it kept when it last came to its end")
            return gorl.load_policy(self.policies_file)
        restored = self.restore()
        if restored is None:
            raise gorl.InputError(
                f"{self.directory} has neither {self.policies_file.name} nor a checkpoint yet: go on with it by "
                f"{command('gorl', 'resume', self.directory)}."
            )
        state, _ = restored
        done = int(np.max(state.index)) / len(gorl.make_schedule(self.config))
        say(f"this run is not finished: these are the best policies of its latest stage, {done:.0%} of the way")
        return gorl.finish(self.config, state).policy

    def policy(self, seed: int | None) -> gorl.Policy:
        """The policy of one seed.

        **Arguments:**

        - `seed`: which; `None` for the one whose policy earns most, or the first if that is not known yet. It says
            which that is.

        **Raises:**

        `gorl.InputError` if there is none.
        """
        seed = self._best_seed() if seed is None else seed
        index = self.index(seed)
        return gorl.of_seed(self.policies(), index)

    def index(self, seed: int) -> int:
        """The place of a seed along the axis of seeds.

        **Raises:**

        `gorl.InputError` if the run has no such seed.
        """
        if seed not in self.seed_numbers:
            held = (
                f"seed {self.first_seed}" if self.seeds == 1 else f"seeds {self.first_seed} to {self.seed_numbers[-1]}"
            )
            raise gorl.InputError(f"there is no seed {seed} in {self.directory}: it holds {held}.")
        return self.seed_numbers.index(seed)

    def _best_seed(self) -> int:
        if self.seeds == 1:
            return self.first_seed
        if not self.is_finished:
            say(f"the policy of seed {self.first_seed}, the first; --seed takes another")
            return self.first_seed
        returns = self._summary()["best_policy_return"]
        best = max(returns, key=lambda seed: -math.inf if returns[seed] is None else returns[seed])
        say(f"the policy of seed {best}, the best of {self.seeds}; --seed takes another")
        return int(best)

    def curve(self) -> list[dict[str, str]]:
        """The rows of the curve so far.

        **Raises:**

        `gorl.InputError` if there are none.
        """
        try:
            with self.curve_file.open(newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError as error:
            raise gorl.InputError(
                f"{self.directory} has no {self.curve_file.name} yet: nothing was evaluated."
            ) from error


def check_seeds(first_seed: int, seeds: int) -> None:
    """Checks that there are keys of so many seeds from the first one on.

    **Raises:**

    `gorl.InputError` if there are not.
    """
    if seeds < 1:
        raise gorl.InputError(f"--seeds must be at least 1, not {seeds}.")
    if not 0 <= first_seed <= 2**32 - seeds:
        raise gorl.InputError(f"--seed must be at least 0 and below 2^32, not {first_seed}.")


def check_new(directory: pathlib.Path, is_named: bool) -> None:
    """Checks that results can go to a directory.

    **Arguments:**

    - `directory`: which.
    - `is_named`: whether somebody asked for it, so that nothing may be there yet; see [`make_directory`][].

    **Raises:**

    `gorl.InputError` if they cannot.
    """
    if is_named and directory.exists():
        if not directory.is_dir():
            raise gorl.InputError(f"--out {directory} is a file: give a directory.")
        way_out = "give a new or an empty directory"
        if (directory / _RUN).exists():
            way_out = f"{way_out}, or go on with {command('gorl', 'resume', directory)}"
        if any(path.name != _LOCK for path in directory.iterdir()):
            raise gorl.InputError(f"--out {directory} is already in use: {way_out}.")
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise gorl.InputError(
            f"--out {directory} cannot be written, because {existing} cannot: give another directory."
        )


def make_directory(directory: pathlib.Path, is_named: bool) -> pathlib.Path:
    """Makes a directory for results.

    **Arguments:**

    - `directory`: which.
    - `is_named`: whether somebody asked for it, so that it has to be this one.

    **Returns:**

    The directory, with a number behind its name where it had none of its own to be and a job that began at the same
    moment has taken it.

    **Raises:**

    `gorl.InputError` if it cannot be made.
    """
    try:
        if is_named:
            directory.mkdir(parents=True, exist_ok=True)
            return directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        made, number = directory, 1
        while True:
            try:
                made.mkdir()  # in which only one of several processes succeeds
                return made
            except FileExistsError:
                number += 1
                made = directory.with_name(f"{directory.name}-{number}")
    except OSError as error:
        raise gorl.InputError(f"--out {directory} cannot be made: {error.strerror}.") from error


@contextlib.contextmanager
def only_writer(directory: pathlib.Path, what: str) -> Iterator[None]:
    """Only one process at a time writes to a directory.

    **Arguments:**

    - `directory`: which.
    - `what`: what it is called.

    **Raises:**

    `gorl.InputError` if another process does.
    """
    lock = filelock.FileLock(directory / _LOCK, mode=0o644)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise gorl.InputError(f"{what} is being written by another process: wait for it, or stop it.") from error
    except OSError as error:
        raise _unwritable(what, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(what: str, error: OSError) -> gorl.InputError:
    return gorl.InputError(
        f"{what} cannot be written ({error.strerror}): {advice(error)}, or copy it to where it can be, and go on there."
    )


def keys_of(seeds: Iterable[int]) -> Key[jax.Array, " seeds"]:
    """A random key for each seed."""
    return jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))


def new_directory(*names: str) -> pathlib.Path:
    """A directory in `runs/` that says what is in it and since when."""
    name = "-".join(names).replace("/", "-").replace(":", "-")
    return pathlib.Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


@functools.cache
def versions() -> dict[str, str]:
    """What numbers depend on besides the config: they are the same bits with the same of these only."""
    return {name: version(name) for name in _PACKAGES} | {"device": jax.devices()[0].device_kind}
