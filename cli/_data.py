"""Demonstrations on disk: `.npz` files, and the data sets of Minari."""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

import gorl

from ._process import check_packages

_MINARI = "minari:"  # begins the name of a data set
_ENVIRONMENT = "environment"
# The arrays of a file; the last two may be missing.
_OBSERVATIONS, _ACTIONS, _LENGTHS, _RETURNS = "observations", "actions", "episode_lengths", "returns"


@dataclasses.dataclass(frozen=True)
class Data:
    """Demonstrations, and what is known about them.

    **Arguments:**

    - `source`: the file or the name of the data set.
    - `demonstrations`: observations and actions.
    - `returns`: of each episode; `None` if not known.
    - `environment`: the name of gorl for the environment that they are of; `None` if not known.
    """

    source: str
    demonstrations: gorl.Demonstrations
    returns: Float[np.ndarray, " episodes"] | None = None
    environment: str | None = None

    def encode(self) -> bytes:
        """The content of an `.npz` file."""
        arrays: dict[str, Any] = {
            _OBSERVATIONS: np.asarray(self.demonstrations.observations),
            _ACTIONS: np.asarray(self.demonstrations.actions),
            _LENGTHS: np.asarray(self.demonstrations.episode_lengths),
        }
        if self.returns is not None:
            arrays[_RETURNS] = self.returns
        if self.environment is not None:
            arrays[_ENVIRONMENT] = np.asarray(self.environment)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        return content.getvalue()


def read_data(source: str) -> Data:
    """The demonstrations in an `.npz` file, or in a data set of Minari on this machine (`minari:NAME`).

    A file holds `observations` and `actions`, of shape `(steps, size)` with the number of actions of each episode in
    `episode_lengths`, or of shape `(episodes, time, size)`. It may hold the `returns` of its episodes.
    """
    if source.startswith(_MINARI):
        return _read_minari(source)
    path = pathlib.Path(source)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise _foreign(source)
        with loaded as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise gorl.InputError(
            f"there is no file {source}: give an .npz file of demonstrations, or {_MINARI}NAME for a data set of "
            "Minari."
        ) from error
    except OSError as error:
        raise gorl.InputError(f"{source} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise _foreign(source) from error
    return _from_arrays(source, arrays)


def _foreign(source: str) -> gorl.InputError:
    return gorl.InputError(f"{source} is no .npz file of arrays: give one as gorl collect or numpy.savez writes it.")


def _from_arrays(source: str, arrays: Mapping[str, np.ndarray]) -> Data:
    missing = [name for name in (_OBSERVATIONS, _ACTIONS) if name not in arrays]
    if missing:
        held = f"only {', '.join(arrays)}" if arrays else "nothing"
        raise gorl.InputError(f"{source} holds no array called {missing[0]}, {held}: name its arrays so.")
    observations, actions = (_numbers(source, name, arrays[name]) for name in (_OBSERVATIONS, _ACTIONS))
    if _LENGTHS in arrays:
        lengths = arrays[_LENGTHS]
        if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
            raise gorl.InputError(f"{_LENGTHS} in {source} must be a row of whole numbers, one for each episode.")
    elif observations.ndim == actions.ndim == 3 and observations.shape[:2] == actions.shape[:2]:
        lengths = np.full(observations.shape[0], observations.shape[1])
        observations, actions = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (observations, actions))
    else:
        raise gorl.InputError(
            f"{source} does not say where episodes end: add {_LENGTHS}, the number of actions of each, or give "
            f"observations and actions of shape (episodes, time, size), not {observations.shape} and {actions.shape}."
        )
    returns = arrays.get(_RETURNS)
    environment = str(arrays[_ENVIRONMENT]) if _ENVIRONMENT in arrays else None
    demonstrations = gorl.Demonstrations(observations, actions, tuple(lengths.tolist()))
    return Data(source, demonstrations, None if returns is None else _numbers(source, _RETURNS, returns), environment)


def _numbers(source: str, name: str, array: np.ndarray) -> np.ndarray:
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise gorl.InputError(f"{name} in {source} are of type {array.dtype}: give numbers.")
    return array.astype(np.float32)


def _read_minari(source: str) -> Data:
    check_packages(source, "minari", ("minari", "h5py"))
    import minari

    name = source.removeprefix(_MINARI)
    try:
        dataset = minari.load_dataset(name)
    except (FileNotFoundError, ValueError) as error:
        here = sorted(minari.list_local_datasets())
        known = f"; here are {', '.join(here)}" if here else ""
        raise gorl.InputError(
            f"the data set {name} of Minari is not on this machine{known}. Get it with minari download {name}."
        ) from error
    actions, observations = dataset.action_space, dataset.observation_space
    for what, space in (("actions", actions), ("observations", observations)):
        if type(space).__name__ != "Box" or len(space.shape or ()) != 1:
            raise gorl.InputError(f"the {what} of {name} are of a {type(space).__name__}, not vectors of numbers.")
    low, high = actions.low, actions.high  # pyright: ignore[reportAttributeAccessIssue]
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        raise gorl.InputError(f"the actions of {name} have no limits, so they cannot be scaled to [-1, 1].")
    episodes = list(dataset.iterate_episodes())
    if not episodes:
        raise gorl.InputError(f"{name} has no episodes.")
    lengths = [len(episode.actions) for episode in episodes]
    # An episode has one observation more than actions: the one after the last.
    seen = np.concatenate([episode.observations[:length] for episode, length in zip(episodes, lengths, strict=True)])
    acted = np.concatenate([episode.actions for episode in episodes])
    scaled = (2 * (acted - low) / (high - low) - 1).astype(np.float32)
    returns = np.array([np.sum(episode.rewards) for episode in episodes], np.float32)
    return Data(source, gorl.Demonstrations(seen.astype(np.float32), scaled, tuple(lengths)), returns)
