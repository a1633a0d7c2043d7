"""Files in, files out: the only module of the library that touches a disk."""

import hashlib
import io
import json
import os
import pathlib
import tempfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ._config import Config
from ._errors import InputError
from ._policy import Policy, StagedDecoder
from ._statistics import RunningStatistics

POLICY_FILE = "policies.eqx"
_FORMAT = 1


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file such that, whatever happens, either the whole of it is there afterwards or what was there before.

    **Arguments:**

    - `path`: where.
    - `content`: text (written as UTF-8) or bytes.
    """
    path = pathlib.Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else may read
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def save_policy(path: str | os.PathLike, policy: Policy, config: Config) -> None:
    """Writes a policy, or the policies of several seeds with a leading axis, to one file.

    **Arguments:**

    - `path`: where.
    - `policy`: such as `result.policy`.
    - `config`: what it was trained with.

    **Raises:**

    `gorl.InputError` if the config cannot be written, such as for an environment without a name.
    """
    weights = io.BytesIO()
    eqx.tree_serialise_leaves(weights, policy)
    header = {
        "format": _FORMAT,
        "config": json.loads(config.to_json()),
        "observation_size": policy.observation_size,
        "action_size": policy.action_size,
        "batch_shape": _batch_shape(policy),
        "bytes": len(weights.getvalue()),
        "sha256": hashlib.sha256(weights.getvalue()).hexdigest(),
    }
    write_whole(path, json.dumps(header).encode() + b"\n" + weights.getvalue())


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
    header, weights = _read(path)
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
    policy = eqx.tree_deserialise_leaves(io.BytesIO(weights), like)
    if seed is None:
        return policy
    if not batch_shape or not 0 <= seed < batch_shape[0]:
        held = f"seeds 0 to {batch_shape[0] - 1}" if batch_shape else "one policy, so leave seed out"
        raise InputError(f"there is no seed {seed} in {path}: it holds {held}.")
    return jax.tree.map(lambda leaf: leaf[seed], policy)


def _read(path: pathlib.Path) -> tuple[dict[str, Any], bytes]:
    try:
        first, _, weights = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise InputError(f"no policy can be read from {path}: {error.strerror}.") from error
    try:
        header = json.loads(first)
        version, size, digest = header["format"], header["bytes"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no policy file: give one that gorl.save_policy wrote.") from error
    if version != _FORMAT:
        raise InputError(f"{path} is of format {version}, and this version of gorl reads {_FORMAT}: install another.")
    if len(weights) != size:
        raise InputError(f"{path} is cut short: {len(weights)} of {size} bytes are there, so copy it again.")
    if hashlib.sha256(weights).hexdigest() != digest:
        raise InputError(f"{path} is damaged: its checksum does not match, so copy it again.")
    return header, weights


def _batch_shape(policy: Policy) -> list[int]:
    """The leading axes of a policy: a single one has a scalar flag in its decoder."""
    assert isinstance(policy.decoder, StagedDecoder)
    return list(policy.decoder.fitted.shape)
