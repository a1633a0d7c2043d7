"""MuJoCo Warp on a CUDA device, as a pure function of MJX's data.

MJX's data for Warp holds arrays that all simulations share, such as the list of contacts, and its size is fixed before
it is known how many simulations there will be. Such data cannot be chosen, stacked or indexed like a state. Here only
the state and the quantities that a task reads are kept between two calls. The rest is made anew in each, for all
simulations that are stepped together.
"""

import copy
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from mujoco import mjx
from mujoco.mjx.third_party.mujoco_warp._src.types import OverflowType

from .._errors import InputError
from .._promotion import usual_promotion
from ._engine import CHANGING, STATE, AbstractLeanPhysics, default_data
from ._randomization import held_by

# Warp's marks of a simulation whose constraints or contacts did not all find a place.
_SHORT = ("NEFC", "NJMAX_NNZ", "BROADPHASE", "NARROWPHASE", "CCD")
_LEFT_OUT = sum(int(OverflowType[name]) for name in _SHORT)
# Warp counts the calls that are traced, and two threads could get the same number.
_tracing = threading.RLock()


class Warp(AbstractLeanPhysics):
    """The dynamics of one model.

    **Arguments:**

    - `model`: MuJoCo's model.
    - `derived`: the names of the derived quantities that are returned.
    - `max_constraints`: the number of constraints that a simulation usually has at most. There is place for twice as
        many, and for Warp's own estimate at least.

    **Raises:**

    `gorl.InputError` for a model that Warp cannot simulate.
    """

    def __init__(self, model: Any, derived: Iterable[str], max_constraints: int = 0):
        derived = tuple(derived)
        self._mj_model = model
        self._default = default_data(model, derived)
        try:
            self._model = _silent(mjx.put_model(model, impl="warp"))
            estimated: Any = mjx.make_data(model, impl="warp")._impl
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"Warp cannot simulate this model ({error}): change the model, or set env.implementation to jax."
            ) from error
        self._contacts_of_one, self._max_constraints = estimated.naconmax, max(2 * max_constraints, estimated.njmax)
        self._fields: dict[str, Array] = {}
        self._outputs = {name: getattr(self._default, name) for name in (*CHANGING, "plugin_state", *derived)}

    def with_fields(self, fields: Mapping[str, Array]) -> "Warp":
        """The dynamics of a model with these values of some fields."""
        other = copy.copy(self)
        other._fields = held_by(self._model, fields)
        return other

    def step(self, data: mjx.Data, num_steps: int) -> mjx.Data:
        state = {name: jnp.asarray(getattr(data, name)) for name in STATE}
        stacked = jax.tree.map(_stacked, (state, self._fields))
        after = jax.tree.map(lambda leaf: leaf[0], self._stepper(1, num_steps)(stacked))
        return data.replace(**after)

    def _stepper(self, num_simulations: int, num_steps: int) -> Any:
        """A function from the states of a number of simulations to what follows them. Its `vmap` steps them all in one
        call, so that it is known how many there are."""

        @jax.custom_batching.custom_vmap
        def step(states: PyTree[Array]) -> PyTree[Array]:
            return self._step_together(states, num_simulations, num_steps)

        @step.def_vmap
        def step_more(axis_size: int, is_batched: Any, states: PyTree[Array]) -> tuple[PyTree[Array], PyTree[bool]]:
            def flat(leaf: Array, batched: bool) -> Array:
                leaf = leaf if batched else jnp.broadcast_to(leaf, (axis_size, *leaf.shape))
                return leaf.reshape(axis_size * num_simulations, *leaf.shape[2:])

            after = self._stepper(axis_size * num_simulations, num_steps)(jax.tree.map(flat, states, *is_batched))
            split = jax.tree.map(lambda leaf: leaf.reshape(axis_size, num_simulations, *leaf.shape[1:]), after)
            return split, jax.tree.map(lambda _: True, split)

        return step

    @usual_promotion()
    def _step_together(self, states: PyTree[Array], num_simulations: int, num_steps: int) -> PyTree[Array]:
        work_space = jax.tree.map(_constant, self._work_space(num_simulations))

        def one(inputs: tuple[dict[str, Array], dict[str, Array]]) -> dict[str, Array]:
            state, fields = inputs
            model = self._model.tree_replace(fields)
            data = work_space.replace(**jax.tree.map(_like, state, {name: getattr(work_space, name) for name in state}))
            if num_steps == 0:
                data = mjx.forward(model, data)
            else:
                data = jax.lax.scan(lambda data, _: (mjx.step(model, data), None), data, None, num_steps)[0]
            # What did not find a place was left out, which is another physics: NaN ends the episode.
            is_short = jnp.any(data._impl.overflow & _LEFT_OUT != 0)
            after = jax.tree.map(_like, {name: getattr(data, name) for name in self._outputs}, self._outputs)
            return jax.tree.map(lambda leaf: jnp.where(is_short, jnp.nan, leaf), after)

        with _tracing:
            return jax.vmap(one)(states)

    def _work_space(self, num_simulations: int) -> mjx.Data:
        """Warp's data for a number of simulations, which share the list of contacts."""
        contacts = num_simulations * self._contacts_of_one
        with jax.ensure_compile_time_eval():
            data = mjx.make_data(self._mj_model, impl="warp", naconmax=contacts, njmax=self._max_constraints)
            return jax.tree.map(np.asarray, data)


def _silent(model: Any) -> Any:
    """A model of which Warp does not print, in each step, that a solver has ended early or that a list is full."""
    return model.replace(opt=model.opt.replace(_impl=model.opt._impl.replace(warn_overflow=0)))


def _stacked(leaf: Array) -> Array:
    return leaf[None]


def _like(leaf: Any, other: Any) -> Array:
    """With the shape and the type of `other`."""
    return jnp.asarray(leaf, other.dtype).reshape(other.shape)


def _constant(leaf: np.ndarray) -> Array:
    """An array of a program that does not hold it, if all of its entries are the same, as the list of contacts is."""
    if leaf.size > 1 and np.all(leaf == leaf.flat[0]):
        return jnp.full(leaf.shape, leaf.flat[0], leaf.dtype)
    return jnp.asarray(leaf)
