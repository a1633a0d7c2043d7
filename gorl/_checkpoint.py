"""Files in, files out: the only module of the library that touches a disk."""

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

from ._config import Config
from ._errors import DamagedFileError, InputError
from ._hyperparameters import to_dict
from ._policy import Policy, StagedDecoder
from ._statistics import RunningStatistics
from ._train import TrainState, shapes

POLICY_FILE = "policies.eqx"
_POLICY, _STATE = "policy", "state"
_FORMAT = 1
_FIRST_LINE = re.compile(rb"gorl (\d{1,9}) ([0-9a-f]{64})\n")
_UNFINISHED = ".unfinished"


def write_whole(path: str | os.PathLike, content: bytes | str | list[bytes | memoryview]) -> None:
    """Writes a file such that, whatever happens, either the whole of it is there afterwards or what was there before.

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
        os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else may read
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name as well outlives a pulled plug
    finally:
        os.close(directory)


def remove_unfinished(directory: str | os.PathLike) -> None:
    """Removes what `write_whole` was writing in a directory when its process was killed.

    Only for a directory that no other process writes to.
    """
    for path in pathlib.Path(directory).glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def save_policy(path: str | os.PathLike, policy: Policy, config: Config) -> None:
    """Writes a policy, or the policies of several seeds with a leading axis, to one file.

    **Arguments:**

    - `path`: where.
    - `policy`: such as `result.policy`.
    - `config`: what it was trained with.

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
    - `seed`: which policy of a run over several seeds, counted from 0; `None` for all of them, with a leading axis.
    - `env`: the name of the environment that the policy is meant for, to be sure.

    **Returns:**

    The policy.

    **Raises:**

    `gorl.InputError` if there is no such file, or it is damaged, or of another environment, or has no such seed.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / POLICY_FILE
    header, weights = _read(path, _POLICY)
    config = Config.from_json(json.dumps(header["config"]))
    if env is not None and str(config.env) != env:
        raise InputError(f"the policy in {path} was trained on {config.env}, not on {env}.")

    def skeleton() -> Policy:
        key = jax.random.key(0)
        sizes = (header["observation_size"], header["action_size"])
        encoder = config.learner.encoder(config.learner.init(*sizes, key))
        decoder = config.decoder.init(RunningStatistics.empty(sizes[0]), sizes[1], key)
        return Policy(encoder, StagedDecoder(decoder, jnp.zeros((), bool)), *sizes)

    batch_shape = tuple(header["batch_shape"])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*batch_shape, *leaf.shape), leaf.dtype), eqx.filter_eval_shape(skeleton)
    )
    policy = _deserialise(path, header, weights, like)
    if seed is None:
        return policy
    if not batch_shape or not 0 <= seed < batch_shape[0]:
        held = f"seeds 0 to {batch_shape[0] - 1}" if batch_shape else "one policy, so leave seed out"
        raise InputError(f"there is no seed {seed} in {path}: it holds {held}.")
    return jax.tree.map(lambda leaf: leaf[seed], policy)


def save_state(path: str | os.PathLike, state: TrainState, config: Config, note: Any = None) -> None:
    """Writes the whole state of a run between two chunks, from which `gorl.iterate` goes on bit-identically.

    **Arguments:**

    - `path`: where.
    - `state`: as `gorl.iterate` gave it; of one seed or of several.
    - `config`: of the run.
    - `note`: anything that JSON can hold, to be found again by `load_state`.

    **Raises:**

    `gorl.InputError` if the config cannot be written; `OSError` if the file cannot.
    """
    header = {
        "seeds": list(state.key.shape),
        "random": str(jax.random.key_impl(state.key)),
        "note": note,
    }
    _write(path, _STATE, config, header, _without_keys(state))


def load_state(path: str | os.PathLike, config: Config) -> tuple[TrainState, Any]:
    """Loads what `save_state` wrote.

    **Arguments:**

    - `path`: the file.
    - `config`: of the run; a run cannot go on with another.

    **Returns:**

    The state, for `gorl.iterate(config, state)`, and the note.

    **Raises:**

    `gorl.InputError` if there is no such file, or it is damaged, or was written with another config (it says which
    fields differ) or by a version of gorl that keeps other things in a state. A damaged file is a
    `gorl.DamagedFileError`, which is one too.
    """
    path = pathlib.Path(path)
    header, arrays = _read(path, _STATE)
    before = Config.from_json(json.dumps(header["config"]))  # where fields that came later have their defaults
    changed = _differences(to_dict(before), to_dict(config))
    if changed:
        raise InputError(
            f"the run was begun with another config than it is to go on with: {'; '.join(changed)}. Set this right, or "
            "begin a new run."
        )
    keys = jnp.broadcast_to(jax.random.key(0, impl=header["random"]), header["seeds"])
    like = shapes(config, keys)
    data = _deserialise(path, header, arrays, eqx.filter_eval_shape(_without_keys, like))

    def with_key(leaf: Any, data: jax.Array) -> jax.Array:
        return jax.random.wrap_key_data(data, impl=header["random"]) if _is_key(leaf) else data

    return jax.tree.map(with_key, like, data), header["note"]


def _without_keys(tree: PyTree) -> PyTree:
    """Random keys as the numbers that they consist of, which is all that a file can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """What differs between two configs as plain data, by dotted name."""
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
        **header,
    }
    pieces = [json.dumps(header).encode() + b"\n", arrays.getbuffer()]
    write_whole(path, [f"gorl {_FORMAT} {_digest(_FORMAT, *pieces)}\n".encode(), *pieces])


def _read(path: pathlib.Path, kind: str) -> tuple[dict[str, Any], memoryview]:
    """The header of a file, and its arrays, as they were when it was written."""
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
    if header["kind"] != kind:
        raise InputError(f"{path} holds a {header['kind']}, not a {kind}: give one that gorl.save_{kind} wrote.")
    return header, memoryview(content)[end + 1 :]


def _digest(version: int, *pieces: bytes | memoryview) -> str:
    digest = hashlib.sha256(b"%d\n" % version)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _deserialise(path: pathlib.Path, header: dict[str, Any], arrays: memoryview, like: PyTree) -> PyTree:
    try:
        return eqx.tree_deserialise_leaves(io.BytesIO(arrays), like)
    except (RuntimeError, ValueError, EOFError) as error:
        # The checksum is right, so the file is what was written: it is the code that has changed since.
        raise InputError(
            f"{path} was written by gorl {header['gorl']}, whose arrays this version does not have: "
            "install that one to read it."
        ) from error


def _batch_shape(policy: Policy) -> list[int]:
    """The leading axes of a policy: a single one has a scalar flag in its decoder."""
    assert isinstance(policy.decoder, StagedDecoder)
    return list(policy.decoder.fitted.shape)
