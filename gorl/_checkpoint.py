"""Files: the only module of the library that touches a disk."""

import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import tempfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._backend import on_one_device
from ._config import Config
from ._env import load_environment
from ._errors import DamagedFileError, InputError
from ._extend import continues, extend
from ._hyperparameters import to_dict
from ._iterate import state_shapes
from ._policy import Policy, StagedDecoder
from ._seeds import of_seed
from ._state import TrainState
from ._statistics import RunningStatistics
from ._tree import described, differing

POLICY_FILE = "policies.eqx"
_POLICY, _STATE = "policy", "state"
_FORMAT = 2
_OLDEST_FORMAT = 2  # in which names got the ones that the field uses; every format from here on is read
_FIRST_LINE = re.compile(rb"gorl (\d{1,9}) ([0-9a-f]{64})\n")
_UNFINISHED = ".unfinished"
_OF_ENVIRONMENT = ".rollout_state."  # arrays of a state that depend on the environment
_SHOWN = 3  # changed arrays that a message names


def write_whole(path: str | os.PathLike, content: bytes | str | list[bytes | memoryview]) -> None:
    """Writes a file atomically: afterwards either the whole new file is there or the old one.

    **Arguments:**

    - `path`: where.
    - `content`: text (written as UTF-8), bytes, or several pieces of bytes, one after the other.

    **Raises:**

    `OSError` if it cannot be written, such as on a full disk; what was there before still is.
    """
    path = pathlib.Path(path)
    pieces = content if isinstance(content, list) else [content.encode() if isinstance(content, str) else content]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # so that the name survives a power failure, too
    finally:
        os.close(directory)


def remove_unfinished(directory: str | os.PathLike) -> None:
    """Removes the temporary files of `write_whole` that a killed process left in a directory.

    No other process may be writing to the directory.
    """
    for path in pathlib.Path(directory).glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def save_policy(path: str | os.PathLike, policy: Policy, config: Config) -> None:
    """Writes a policy, or the policies of several seeds with a leading axis, to one file.

    **Arguments:**

    - `path`: where.
    - `policy`: such as `result.policy`.
    - `config`: of its run.

    **Raises:**

    `gorl.InputError` if the config cannot be written, such as for an environment without a name.
    """
    header = {
        "observation_size": policy.observation_size,
        "action_size": policy.action_size,
        "batch_shape": _batch_shape(policy),
    }
    _write(path, _POLICY, config, header, policy)


def load_policy(path: str | os.PathLike, *, seed: int | None = None, env: str | None = None) -> Policy:
    """Loads what `save_policy` wrote.

    **Arguments:**

    - `path`: the file, or the directory of a run of `gorl train`.
    - `seed`: the index of a policy of several seeds, counted from 0; `None` for all of them, with a leading axis.
    - `env`: the name of an environment, to check that the policy was trained on it.

    **Returns:**

    The policy.

    **Raises:**

    `gorl.InputError` if there is no such file, or it is damaged, or of another environment, or has no such seed.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / POLICY_FILE
    header, weights = _read(path, _POLICY)
    config = _config(path, header)
    if env is not None and str(config.env) != env:
        raise InputError(f"the policy in {path} was trained on {config.env}, not on {env}.")

    def skeleton() -> Policy:
        key = jax.random.key(0)
        sizes = (header["observation_size"], header["action_size"])
        encoder = config.learner.encoder(config.learner.init(*sizes, key))
        decoder = config.decoder.init(RunningStatistics.empty(sizes[0]), sizes[1], key)
        return Policy(encoder, StagedDecoder(decoder, jnp.zeros((), bool)), *sizes)

    batch_shape = tuple(header["batch_shape"])
    with jax.enable_x64(False):  # as it was trained
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*batch_shape, *leaf.shape), leaf.dtype), eqx.filter_eval_shape(skeleton)
        )
        _check_arrays(path, header, like, config)
        policy = _deserialise(path, header, weights, like)
    if seed is None:
        return policy
    if not batch_shape or not 0 <= seed < batch_shape[0]:
        held = f"seeds 0 to {batch_shape[0] - 1}" if batch_shape else "one policy, so leave seed out"
        raise InputError(f"there is no seed {seed} in {path}: it holds {held}.")
    return of_seed(policy, seed)


def save_state(path: str | os.PathLike, state: TrainState, config: Config, note: Any = None) -> None:
    """Writes the whole state of a run, from which `gorl.iterate` continues bit-identically.

    A state that several processes share is written by the first of them. All of them have to call this.

    **Arguments:**

    - `path`: where.
    - `state`: as `gorl.iterate` gave it; of one seed or of several.
    - `config`: of the run.
    - `note`: any JSON value, which `load_state` returns.

    **Raises:**

    `gorl.InputError` if the config cannot be written; `OSError` if the file cannot.
    """
    if not state.key.is_fully_addressable:
        state = on_one_device(state)
        if jax.process_index() > 0:
            return
    header = {
        "environment": _environment(config),
        "seeds": list(state.key.shape),
        "random": str(jax.random.key_impl(state.key)),
        "note": note,
    }
    _write(path, _STATE, config, header, _without_keys(state))


def load_state(path: str | os.PathLike, config: Config) -> tuple[TrainState, Any]:
    """Loads what `save_state` wrote.

    **Arguments:**

    - `path`: the file.
    - `config`: of the run, or a longer one, for which the state is extended (`gorl.lengthen`, `gorl.extend`).

    **Returns:**

    The state, for `gorl.iterate(config, state)`, and the note.

    **Raises:**

    `gorl.InputError` if there is no such file, or it is damaged, or was written with another config (it says which
    fields differ), for an environment that has changed since, or by code that keeps other arrays in a state. A damaged
    file is a `gorl.DamagedFileError`, which is one too.
    """
    path = pathlib.Path(path)
    header, arrays = _read(path, _STATE)
    before = _config(path, header)  # newer fields have their defaults
    changed = _differences(to_dict(before), to_dict(config))
    longer = Config.from_json(config.to_json())
    if changed and not continues(before, longer):
        raise InputError(
            f"the run was begun with another config than it is to go on with: {'; '.join(changed)}. Set this right, or "
            "begin a new run."
        )
    _check_environment(path, header, config)
    keys = jnp.broadcast_to(jax.random.key(0, impl=header["random"]), header["seeds"])
    like = state_shapes(before, keys)
    like_data = eqx.filter_eval_shape(_without_keys, like)
    _check_arrays(path, header, like_data, config)
    data = _deserialise(path, header, arrays, like_data)

    def with_key(leaf: Any, data: jax.Array) -> jax.Array:
        return jax.random.wrap_key_data(data, impl=header["random"]) if _is_key(leaf) else data

    state = jax.tree.map(with_key, like, data)
    return extend(before, state, longer) if changed else state, header["note"]


def _without_keys(tree: PyTree) -> PyTree:
    """Random keys as plain numbers, which a file can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The differences between two configs as plain data, by dotted name."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [f"{prefix.rstrip('.')} was {before} and is {after}"]
    names = dict.fromkeys([*before, *after])
    return [
        difference
        for name in names
        for difference in _differences(before.get(name), after.get(name), f"{prefix}{name}.")
    ]


def _write(path: str | os.PathLike, kind: str, config: Config, header: dict[str, Any], tree: PyTree) -> None:
    """A line with the format and a checksum of all that follows, a line of JSON, and the arrays as Equinox has them."""
    arrays = io.BytesIO()
    eqx.tree_serialise_leaves(arrays, tree)
    header = {
        "kind": kind,
        "gorl": importlib.metadata.version("gorl"),
        "config": json.loads(config.to_json()),
        "arrays": described(tree),
        **header,
    }
    pieces = [json.dumps(header).encode() + b"\n", arrays.getbuffer()]
    write_whole(path, [f"gorl {_FORMAT} {_digest(_FORMAT, *pieces)}\n".encode(), *pieces])


def _read(path: pathlib.Path, kind: str) -> tuple[dict[str, Any], memoryview]:
    """The header of a file, and its arrays as bytes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"no {kind} can be read from {path}: {error.strerror}.") from error
    first = _FIRST_LINE.match(content)
    if first is None:
        raise DamagedFileError(f"{path} is no {kind} file: give one that gorl.save_{kind} wrote.")
    version, digest = int(first[1]), first[2].decode()
    rest = memoryview(content)[first.end() :]
    if _digest(version, rest) != digest:
        raise DamagedFileError(f"{path} is damaged or cut short: its checksum does not match, so copy it again.")
    if version > _FORMAT:
        raise InputError(
            f"{path} is of format {version}, and this version of gorl reads none newer than {_FORMAT}: install a newer "
            "gorl."
        )
    end = content.index(b"\n", first.end())
    header = json.loads(content[first.end() : end])
    if version < _OLDEST_FORMAT:
        raise InputError(f"{path} {written_by(header['gorl'])}")
    if header["kind"] != kind:
        raise InputError(f"{path} holds a {header['kind']}, not a {kind}: give one that gorl.save_{kind} wrote.")
    return header, memoryview(content)[end + 1 :]


def written_by(version: str) -> str:
    """The end of a sentence that refuses a file of an older format, which that version wrote."""
    return (
        f"was written by gorl {version}, whose names this version does not know any more: install that one to read it "
        f'(pip install "gorl=={version}"), or begin a new run.'
    )


def _digest(version: int, *pieces: bytes | memoryview) -> str:
    digest = hashlib.sha256(b"%d\n" % version)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _config(path: pathlib.Path, header: dict[str, Any]) -> Config:
    try:
        return Config.from_json(json.dumps(header["config"]))
    except InputError as error:
        raise InputError(
            f"the config in {path}, which gorl {header['gorl']} wrote, cannot be understood (import the module of a "
            f"learner or decoder of your own first): {error}"
        ) from error


def _environment(config: Config) -> dict[str, int]:
    """What must not change in the environment of a run, in words that a number follows."""
    env = load_environment(config.env)
    return {
        "observations of size": env.observation_size,
        "observations for critics alone of size": env.critic_observation_size or 0,
        "actions of size": env.action_size,
        "episodes of length": env.episode_length,
    }


def _check_environment(path: pathlib.Path, header: dict[str, Any], config: Config) -> None:
    """Checks that an environment is what it was when a file was written.

    **Raises:**

    `gorl.InputError` if it is not.
    """
    now = _environment(config)
    before = header["environment"]
    changed = [f"{what} {before.get(what, 0)} and has {now[what]}" for what in now if before.get(what, 0) != now[what]]
    if changed:
        raise InputError(
            f"the environment {config.env} has changed since {path} was written: it had {', '.join(changed)}. Take it "
            "back to what it was, or begin a new run."
        )


def _check_arrays(path: pathlib.Path, header: dict[str, Any], like: PyTree, config: Config) -> None:
    """Checks that a file holds the arrays that are needed now.

    **Raises:**

    `gorl.InputError` if it does not: it says what has changed since.
    """
    now = described(like)
    before = header["arrays"]
    if before == now:
        return
    names = differing(before, now)
    changed = ", ".join(
        f"{name.lstrip('.')} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in names[:_SHOWN]
    )
    changed += f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    if header["gorl"] != importlib.metadata.version("gorl"):
        raise _of_another_version(path, header)
    if all(name.startswith(_OF_ENVIRONMENT) for name in names):
        raise InputError(
            f"the states of the environment {config.env} have changed since {path} was written: {changed}. Take it and "
            "the package that it comes from back to what they were, or begin a new run."
        )
    raise InputError(
        f"the code of the learner or the decoder, or a package that it uses, has changed since {path} was written: "
        f"{changed}. Take it back to what it was to read the file."
    )


def _deserialise(path: pathlib.Path, header: dict[str, Any], arrays: memoryview, like: PyTree) -> PyTree:
    try:
        return eqx.tree_deserialise_leaves(io.BytesIO(arrays), like)
    except (RuntimeError, ValueError, EOFError) as error:
        # The checksum is right, so it is the code that has changed.
        raise _of_another_version(path, header) from error


def _of_another_version(path: pathlib.Path, header: dict[str, Any]) -> InputError:
    if header["gorl"] == importlib.metadata.version("gorl"):
        return InputError(
            f"{path} holds other arrays than are needed now: its environment or the code have changed since it was "
            "written. Take them back to what they were to read it."
        )
    return InputError(
        f"{path} was written by gorl {header['gorl']}, whose arrays this version does not have: "
        "install that one to read it."
    )


def _batch_shape(policy: Policy) -> list[int]:
    """The leading axes of a policy."""
    assert isinstance(policy.decoder, StagedDecoder)
    return list(policy.decoder.fitted.shape)
