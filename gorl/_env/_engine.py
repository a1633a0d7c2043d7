"""MuJoCo's own engine on a CPU, as a pure function of MJX's data.

Many simulations of one model are stepped side by side by the threads of `mujoco.batch.Batch`. Nothing is kept between
two calls: each writes the whole state of every simulation, and reads the state and the derived quantities that follow.
"""

import abc
import copy
import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array
from mujoco import mjx
from mujoco.batch import Batch, SimulationError

from .. import _host
from .._backend import num_cores, num_devices_of_program
from .._errors import InputError
from ._quiet import without_warnings

# The state of a simulation in the order of MuJoCo's rows, by the names that MJX's data and MuJoCo's share. A step
# changes what comes first, and what plugins remember.
CHANGING = ("time", "qpos", "qvel", "act", "history", "qacc_warmstart")
STATE = (
    *CHANGING,
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
    "plugin_state",
)
# Fields of MJX's data that MuJoCo computes only for inverse dynamics.
_NOT_COMPUTED = ("qfrc_inverse",)
_TARGET = "gorl_mujoco"
_BAD = [
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADQPOS,  # pyright: ignore[reportAttributeAccessIssue]
        mujoco.mjtWarning.mjWARN_BADQVEL,  # pyright: ignore[reportAttributeAccessIssue]
        mujoco.mjtWarning.mjWARN_BADQACC,  # pyright: ignore[reportAttributeAccessIssue]
        mujoco.mjtWarning.mjWARN_BADCTRL,  # pyright: ignore[reportAttributeAccessIssue]
    )
]

DERIVED = tuple(
    field.name
    for field in dataclasses.fields(cast(Any, mjx.Data))
    if field.name not in (*STATE, *_NOT_COMPUTED, "_impl")
)


class NotHandedBack(np.lib.mixins.NDArrayOperatorsMixin):
    """A field of MJX's data that MuJoCo's engine does not return. Any use of it raises an error that says so."""

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise _not_handed_back("this part of the data" if self._name == "_impl" else f"data.{self._name}")

    __getitem__ = __iter__ = __len__ = __bool__ = __float__ = __array__ = __jax_array__ = __array_ufunc__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _not_handed_back(f"data.{name}" if self._name == "_impl" else f"data.{self._name}")

    def __repr__(self) -> str:
        return "<not handed back>"


def _not_handed_back(what: str) -> InputError:
    return InputError(
        f"MuJoCo's engine does not hand {what} back: it hands back what reset and step of a task read of "
        f"{', '.join((*STATE, *DERIVED))}. Read one of these, or set env.implementation to jax."
    )


jax.tree_util.register_pytree_node(NotHandedBack, lambda node: ((), node._name), lambda name, _: NotHandedBack(name))


class AbstractLeanPhysics(abc.ABC):
    """The dynamics of one model, whose data holds the state and only those derived quantities that a task reads."""

    _default: mjx.Data

    def make_data(self) -> mjx.Data:
        """The model's default state, with nothing derived."""
        return jax.tree.map(jnp.asarray, self._default)

    def forward(self, data: mjx.Data) -> mjx.Data:
        """Derives all quantities from the state."""
        return self.step(data, 0)

    @abc.abstractmethod
    def step(self, data: mjx.Data, num_steps: int) -> mjx.Data:
        """Takes physics steps. As in MJX, derived quantities belong to the state before the last step."""


class Engine(AbstractLeanPhysics):
    """The dynamics of one model.

    **Arguments:**

    - `model`: MuJoCo's model. It is copied.
    - `derived`: the names of the derived quantities that are returned.
    - `fields`: the names of the model's fields that differ from simulation to simulation (see `with_fields`).
    """

    def __init__(self, model: Any, derived: Iterable[str], fields: Iterable[str] = ()):
        derived = tuple(derived)
        self._names, self._fields = tuple(fields), ()
        self._default = default_data(model, derived)
        shapes = {name: np.shape(getattr(self._default, name)) for name in (*STATE, *derived)}
        integrated = mujoco.mjtState.mjSTATE_INTEGRATION  # pyright: ignore[reportAttributeAccessIssue]
        size = mujoco.mj_stateSize(model, integrated)  # pyright: ignore[reportAttributeAccessIssue]
        if sum(math.prod(shapes[name]) for name in STATE) != size:
            raise InputError(
                "this model keeps state that MJX's data has no place for, so MuJoCo's engine cannot take it up again: "
                "leave plastic flexes out of it."
            )
        self._changing = {name: shapes[name] for name in CHANGING}
        self._outputs = {
            name: jax.ShapeDtypeStruct(shapes[name], jnp.float32)
            for name in ("plugin_state", *derived)
            if np.prod(shapes[name]) > 0
        }
        self._ends = np.cumsum([math.prod(shape) for shape in self._changing.values()])
        self._key = _simulator_of(model, int(self._ends[-1]), list(self._outputs), list(self._names))

    def with_fields(self, fields: Mapping[str, Array]) -> "Engine":
        """The dynamics of a model with these values of the fields that differ."""
        other = copy.copy(self)
        other._fields = tuple(jnp.ravel(jnp.asarray(fields[name], jnp.float32)) for name in self._names)
        return other

    def step(self, data: mjx.Data, num_steps: int) -> mjx.Data:
        row = jnp.concatenate([jnp.ravel(jnp.asarray(getattr(data, name), jnp.float32)) for name in STATE])
        changed, *results = _host.call(
            _TARGET,
            [row, jnp.concatenate(self._fields)] if self._fields else [row],
            [jax.ShapeDtypeStruct((int(self._ends[-1]),), jnp.float32), *self._outputs.values()],
            simulator=self._key,
            num_steps=num_steps,
            num_threads=_num_threads(),
        )
        parts = zip(self._changing.items(), jnp.split(changed, self._ends[:-1]), strict=True)
        after = {name: part.reshape(shape) for (name, shape), part in parts}
        return data.replace(**after, **dict(zip(self._outputs, results, strict=True)))


class _Simulator:
    """Steps any number of simulations of a model, in any number of threads."""

    def __init__(self, model: Any, num_changing: int, outputs: list[str], fields: list[str]):
        self._model, self._num_changing, self._outputs, self._fields = model, num_changing, outputs, fields
        self._idle: dict[tuple[int, int], list[_Simulations]] = {}
        self._lock = threading.Lock()

    def run(
        self, rows: np.ndarray, fields: np.ndarray | None, outputs: list[np.ndarray], num_steps: int, num_threads: int
    ) -> None:
        """Steps every simulation from its own state; with no steps, only derives quantities from it."""
        num_simulations = math.prod(rows.shape[:-1])
        key = (num_simulations, min(num_threads, num_simulations))
        with self._lock:
            idle = self._idle.setdefault(key, [])
            simulations = idle.pop() if idle else None
        if simulations is None:
            simulations = _Simulations(Batch(self._model, *key), self._num_changing, self._outputs, self._fields)
        try:
            simulations.run(rows, fields, outputs, num_steps)
        finally:
            with self._lock:
                idle.append(simulations)
            _used(self)

    def forget_idle(self) -> None:
        """Frees the simulations, which the next call makes again."""
        with self._lock:
            self._idle = {}


class _Simulations:
    """A batch and its arrays. Only one thread may use it at a time."""

    def __init__(self, batch: Batch, num_changing: int, outputs: list[str], fields: list[str]):
        self._batch = batch
        self._fields = [batch.expand(name) for name in fields]
        self._outputs = [batch.state[:, :num_changing], *(batch.bind(name) for name in outputs)]

    def run(self, rows: np.ndarray, fields: np.ndarray | None, outputs: list[np.ndarray], num_steps: int) -> None:
        rows = rows.reshape(self._batch.state.shape)
        self._batch.state[...] = rows
        if fields is not None:
            write_fields(self._fields, fields)
        failed = np.zeros(self._batch.nsim, bool)
        if not np.isfinite(rows.sum()):  # cheaper than a test of each number
            failed |= ~np.isfinite(rows).all(axis=1)
        self._batch.warning[...] = 0
        with without_warnings():
            try:
                if num_steps > 0:
                    self._batch.step(nstep=num_steps)
                else:
                    self._batch.forward()
            except SimulationError as error:
                failed[error.ids] = True
        if self._batch.warning.any():
            failed |= self._batch.warning[:, _BAD].any(axis=(1, 2))
        with np.errstate(over="ignore"):  # the engine computes in double precision
            for view, values in zip(self._outputs, outputs, strict=True):
                values[...] = view.reshape(values.shape)
        if failed.any():
            # As in MJX, where a NaN spreads to everything.
            for values in outputs:
                values.reshape(len(failed), -1)[failed] = np.nan


# Programs may ask for any simulator at any time, but simulations take much memory: only those of the last few stay.
_MOST_WARM = 16
_simulators: dict[int, _Simulator] = {}
_warm: dict[_Simulator, None] = {}  # in the order of their use
_simulators_lock = threading.Lock()


def _used(simulator: _Simulator) -> None:
    """Records the use of a simulator, and frees the simulations of the least recently used one."""
    with _simulators_lock:
        _warm.pop(simulator, None)
        _warm[simulator] = None
        coldest = next(iter(_warm)) if len(_warm) > _MOST_WARM else None
        if coldest is not None:
            del _warm[coldest]
    if coldest is not None:
        coldest.forget_idle()


def _simulator_of(model: Any, num_changing: int, outputs: list[str], fields: list[str]) -> int:
    """The key of a model's simulator in programs. It is the same in every process, as programs are cached."""
    model = copy.copy(model)
    # A simulation that blew up must not reset itself.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)  # pyright: ignore[reportAttributeAccessIssue]
    key = key_of(model, [outputs, fields])
    with _simulators_lock:
        if key not in _simulators:
            _simulators[key] = _Simulator(model, num_changing, outputs, fields)
            if len(_simulators) == 1:
                _host.register(_TARGET, _simulate)
    return key


def write_fields(views: list[np.ndarray], rows: np.ndarray) -> None:
    """Writes fields of the model, one after the other in the row of each simulation, into their arrays in a batch."""
    rows, begin = rows.reshape(-1, rows.shape[-1]), 0
    for view in views:
        size = math.prod(view.shape[1:])
        view[...] = rows[:, begin : begin + size].reshape(view.shape)
        begin += size


def key_of(model: Any, what: Any) -> int:
    """A number for a model and for what is computed of it, the same in every process."""
    content = np.empty(mujoco.mj_sizeModel(model), np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.mj_saveModel(model, None, content)  # pyright: ignore[reportAttributeAccessIssue]
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode() + content.tobytes()).digest()[:7], "little")


def _simulate(attributes: dict[str, int], inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    simulator = _simulators[attributes["simulator"]]
    fields = inputs[1] if len(inputs) > 1 else None
    simulator.run(inputs[0], fields, outputs, attributes["num_steps"], attributes["num_threads"])


def default_data(model: Any, derived: Iterable[str]) -> mjx.Data:
    """MJX's data of a model in its default state, with only these derived quantities."""
    others = {name: NotHandedBack(name) for name in (*DERIVED, *_NOT_COMPUTED, "_impl") if name not in derived}
    return jax.tree.map(np.asarray, mjx.make_data(model, impl="jax").replace(**others))


def _num_threads() -> int:
    """The number of threads that simulate for each device of the program that is being traced."""
    return max(1, num_cores() // num_devices_of_program())
