"""MuJoCo's own engine on a CPU, as a pure function of MJX's data.

Many simulations of one model are stepped side by side by the threads of `mujoco.batch.Batch`. Nothing is kept between
two calls: each writes the whole state of every simulation, and reads the state and the derived quantities that follow.
"""

import copy
import dataclasses
import functools
import threading
from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float
from mujoco import mjx
from mujoco.batch import Batch, SimulationError

from .._devices import num_cores, num_devices_of_program
from .._errors import InputError
from ._quiet import without_warnings

# The state of a simulation, by the names that MJX's data and MuJoCo's share, and those of it that a step changes.
_STATE = (
    "time",
    "qpos",
    "qvel",
    "act",
    "history",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
    "plugin_state",
)
_CHANGING = ("time", "qpos", "qvel", "act", "history", "qacc_warmstart", "plugin_state")
# Of MJX's data, what MuJoCo computes only when asked for inverse dynamics.
_NOT_COMPUTED = ("qfrc_inverse",)
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
    if field.name not in (*_STATE, *_NOT_COMPUTED, "_impl")
)


class NotHandedBack(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands in MJX's data for what MuJoCo's engine does not hand back. Whatever is done with it says so."""

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        name = "this part of the data" if self._name == "_impl" else f"data.{self._name}"
        raise InputError(
            f"MuJoCo's engine does not hand {name} back: it hands back what reset and step of a task read of "
            f"{', '.join((*_STATE, *DERIVED))}. Read one of these, or set env.implementation to jax."
        )

    __getitem__ = __iter__ = __len__ = __bool__ = __float__ = __array__ = __jax_array__ = __array_ufunc__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    def __repr__(self) -> str:
        return "<not handed back>"


jax.tree_util.register_pytree_node(NotHandedBack, lambda node: ((), node._name), lambda name, _: NotHandedBack(name))


class Engine:
    """The dynamics of one model.

    **Arguments:**

    - `model`: MuJoCo's model. It is copied.
    - `mjx_model`: the same as MJX has it, which callers give to say which model they mean.
    - `derived`: the names of the derived quantities that are handed back.
    """

    def __init__(self, model: Any, mjx_model: Any, derived: Iterable[str] = DERIVED):
        self._model = copy.copy(model)
        # A simulation that blew up is not to begin again by itself.
        self._model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)  # pyright: ignore[reportAttributeAccessIssue]
        self._mjx_model = mjx_model
        self._derived = tuple(derived)
        self._blank = _blank_data(model)
        shapes = {name: np.shape(getattr(self._blank, name)) for name in (*_STATE, *DERIVED)}
        self._inputs = [name for name in _STATE if np.prod(shapes[name]) > 0]
        self._outputs = {name: shapes[name] for name in (*_CHANGING, *self._derived) if np.prod(shapes[name]) > 0}
        self._idle: dict[tuple[int, int], list[_Simulations]] = {}
        self._lock = threading.Lock()

    def make_data(self, *_: Any, **__: Any) -> mjx.Data:
        """Takes the place of `mjx.make_data`: the model's default state, nothing derived."""
        unread = {name: NotHandedBack(name) for name in (*DERIVED, *_NOT_COMPUTED) if name not in self._derived}
        return jax.tree.map(jnp.asarray, self._blank.replace(**unread))

    def forward(self, mjx_model: Any, data: mjx.Data) -> mjx.Data:
        """Takes the place of `mjx.forward`: derives everything from the state as it is."""
        return self._run(mjx_model, data, 0)

    def step(self, mjx_model: Any, data: mjx.Data, num_steps: int = 1) -> mjx.Data:
        """Takes the place of `mjx.step`. As there, what is derived is so from the state before the last step."""
        return self._run(mjx_model, data, num_steps)

    def _run(self, mjx_model: Any, data: mjx.Data, num_steps: int) -> mjx.Data:
        if mjx_model is not self._mjx_model:
            raise InputError(
                "this task simulates another model than the one that its mjx_model gave when it was loaded, which "
                "MuJoCo's engine cannot: set env.implementation to jax."
            )
        rows = jnp.concatenate([jnp.ravel(jnp.asarray(getattr(data, name), jnp.float32)) for name in self._inputs])
        sizes = [int(np.prod(shape)) for shape in self._outputs.values()]
        results = jax.pure_callback(
            functools.partial(self._simulate, num_steps, _num_threads()),
            jax.ShapeDtypeStruct((sum(sizes),), jnp.float32),
            rows,
            vmap_method="broadcast_all",
        )
        parts = jnp.split(results, np.cumsum(sizes)[:-1])
        after = {name: part.reshape(shape) for part, (name, shape) in zip(parts, self._outputs.items(), strict=True)}
        return data.replace(**after)

    def _simulate(
        self, num_steps: int, num_threads: int, rows: Float[Array, "*batch inputs"]
    ) -> Float[np.ndarray, "*batch outputs"]:
        """The call on the host. Only numpy: a callback that waits for JAX may wait for ever."""
        values = np.asarray(rows)
        batch_shape, values = values.shape[:-1], values.reshape(-1, values.shape[-1])
        simulations = self._take(len(values), min(num_threads, len(values)))
        try:
            results = simulations.run(values, num_steps)
        finally:
            with self._lock:
                self._idle[simulations.key].append(simulations)
        return results.reshape(*batch_shape, -1)

    def _take(self, num_simulations: int, num_threads: int) -> "_Simulations":
        """Simulations that no other thread uses."""
        with self._lock:
            idle = self._idle.setdefault((num_simulations, num_threads), [])
            if idle:
                return idle.pop()
        return _Simulations(Batch(self._model, num_simulations, num_threads), self._inputs, list(self._outputs))


class _Simulations:
    """A batch with its arrays at hand. No two threads may use it at once."""

    def __init__(self, batch: Batch, inputs: list[str], outputs: list[str]):
        self.key = (batch.nsim, batch.nthread)
        self._batch = batch
        self._inputs = [batch.bind(name) for name in inputs]
        self._outputs = [batch.bind(name) for name in outputs]
        self._num_outputs = sum(view[0].size for view in self._outputs)

    def run(
        self, values: Float[np.ndarray, "simulations inputs"], num_steps: int
    ) -> Float[np.ndarray, "simulations outputs"]:
        """Steps every simulation from a state of its own; with no steps, only derives what follows from the state."""
        begin = 0
        for view in self._inputs:
            end = begin + view[0].size
            view[...] = values[:, begin:end].reshape(view.shape)
            begin = end
        self._batch.warning[...] = 0
        failed = np.asarray(~np.isfinite(values).all(axis=1))
        with without_warnings():
            try:
                if num_steps > 0:
                    self._batch.step(nstep=num_steps)
                else:
                    self._batch.forward()
            except SimulationError as error:
                failed[error.ids] = True
        failed |= self._batch.warning[:, _BAD].any(axis=(1, 2))
        results = np.empty((len(values), self._num_outputs), np.float32)
        begin = 0
        with np.errstate(over="ignore"):  # the engine's numbers reach further than those that go back
            for view in self._outputs:
                end = begin + view[0].size
                results[:, begin:end] = view.reshape(len(view), -1)
                begin = end
        # As under MJX, where what is not a number any more spreads to everything.
        results[failed] = np.nan
        return results


def _blank_data(model: Any) -> mjx.Data:
    """MJX's data of a model in its default state, without what only MJX's own functions need."""
    data = mjx.make_data(model, impl="jax").replace(_impl=NotHandedBack("_impl"))
    return jax.tree.map(np.asarray, data)


def _num_threads() -> int:
    """How many threads simulate for one device, of those that run the program that is being traced."""
    return max(1, num_cores() // num_devices_of_program())
