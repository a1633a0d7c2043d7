"""A task whose physics, sensors and actuators differ from episode to episode."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, PyTree, UInt32
from mujoco.batch import Batch

from .. import _host
from .._errors import InputError
from .._types import RandomKey
from ._engine import key_of, write_fields
from ._quiet import without_warnings
from ._randomization import Fields, Randomization, free_joint, nominal
from ._robot import Physics

# What MuJoCo derives from other fields when it compiles a model, of what its step reads.
_CONSTANTS = (
    *("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"),
    *("tendon_length0", "tendon_invweight0", "actuator_acc0"),
)
_TARGET = "gorl_constants"


class RandomizedState(eqx.Module):
    """A state of a task, and what has been drawn for its episode.

    **Attributes:**

    - `state`: the task's own.
    - `obs`: what the policy and critics see, with the noise of the sensors.
    - `fields`: fields of the model, with the constants that follow from them.
    - `noise`: standard deviation of the sensors' noise; `None` without.
    - `delay`: control steps until an action has an effect; `None` without.
    - `actions`: the last actions, the newest first.
    - `key`: key data of pushes and noise.
    """

    state: Any
    obs: PyTree[Array]
    fields: Fields
    noise: Array | None
    delay: Array | None
    actions: Array
    key: UInt32[Array, "*batch 2"]

    reward = property(lambda self: self.state.reward)
    done = property(lambda self: self.state.done)
    metrics = property(lambda self: getattr(self.state, "metrics", None))
    data = property(lambda self: self.state.data)


class Randomized:
    """A task with a randomization.

    **Arguments:**

    - `task`: the task with the nominal model.
    - `by`: gives the task, simulated by any physics.
    - `physics`: gives the physics of a model, of which the fields of these names vary.
    - `randomization`: what is drawn for an episode.
    - `policy_part`: the part of the observation that the policy sees; `None` for the whole observation.
    """

    def __init__(
        self,
        task: Any,
        by: Callable[[Physics], Any],
        physics: Callable[[Any, tuple[str, ...]], Any],
        randomization: Randomization,
        policy_part: str | None,
    ):
        self._task, self._by, self._randomization, self._part = task, by, randomization, policy_part
        self._mj_model = task.mj_model
        fields = randomization.fields(self._mj_model, jax.random.key(0))
        _check_centres(self._mj_model, fields)
        drawn = tuple(fields)
        derives = set(drawn) & set(mujoco.MjModel._setconst_inputs)  # pyright: ignore[reportAttributeAccessIssue]
        if derives:
            self._mj_model = _general(self._mj_model)
        self._constants = _Constants(self._mj_model, drawn) if derives else None
        self._physics = physics(self._mj_model, (*drawn, *(self._constants.names if self._constants else ())))
        self._free = free_joint(self._mj_model)
        if randomization.push is not None and self._free is None:
            raise InputError("nothing of this model moves freely, so that it cannot be pushed: leave push out.")

    def reset(self, key: RandomKey) -> RandomizedState:
        """The first state of an episode with a model of its own."""
        draw_key, noise_key, delay_key, key_data = jax.random.split(jax.random.fold_in(key, 2), 4)
        fields = self._randomization.fields(self._mj_model, draw_key)
        if self._constants is not None:
            fields |= self._constants.of(fields)
        state = self._simulated(fields).reset(key)
        noise, delay = self._randomization.noise, self._randomization.delay
        drawn = None if noise is None else noise.uniform(noise_key)
        steps = None if delay is None else jax.random.randint(delay_key, (), int(delay.low), int(delay.high) + 1)
        actions = jnp.zeros((0 if delay is None else int(delay.high), self._task.action_size))
        key_data = jax.random.key_data(key_data)
        return self._seen(RandomizedState(state, state.obs, fields, drawn, steps, actions, key_data))

    def step(self, state: RandomizedState, action: Array) -> RandomizedState:
        """The state one control step later."""
        given = jnp.concatenate([action[None], state.actions])
        taken = action if state.delay is None else given[state.delay]
        push_key, noise_key = jax.random.split(jax.random.wrap_key_data(state.key))
        inner = state.state
        if self._randomization.push is not None:
            begin = int(self._mj_model.jnt_dofadr[self._free])
            velocity = inner.data.qvel
            pushed = self._randomization.pushed(velocity[begin : begin + 2], self._task.dt, push_key)
            inner = dataclasses.replace(inner, data=inner.data.replace(qvel=velocity.at[begin : begin + 2].set(pushed)))
        inner = self._simulated(state.fields).step(inner, taken)
        actions = given[: state.actions.shape[0]]
        key = jax.random.key_data(noise_key)
        after = dataclasses.replace(state, state=inner, obs=inner.obs, actions=actions, key=key)
        return self._seen(after)

    def _simulated(self, fields: Fields) -> Any:
        return self._by(self._physics.with_fields(fields))

    def _seen(self, state: RandomizedState) -> RandomizedState:
        """The state with the noise of its sensors."""
        if state.noise is None:
            return state
        noise_key, key = jax.random.split(jax.random.wrap_key_data(state.key))
        obs = state.obs
        sensed = obs if self._part is None else obs[self._part]
        sensed = sensed + state.noise * jax.random.normal(noise_key, sensed.shape)
        obs = sensed if self._part is None else obs | {self._part: sensed}
        return dataclasses.replace(state, obs=obs, key=jax.random.key_data(key))


def _general(mj_model: Any) -> Any:
    """A copy of a model without the marks of frames that coincide, which another centre of mass makes differ."""
    model = copy.copy(mj_model)
    for name in ("body_sameframe", "geom_sameframe", "site_sameframe"):
        getattr(model, name)[:] = 0
    return model


def _check_centres(mj_model: Any, fields: Fields) -> None:
    """Refuses another centre of mass of a body whose mass matrix MuJoCo has compiled as a diagonal."""
    is_diagonal = (mj_model.body_simple > 0) & (mj_model.body_dofnum > 0)
    for name in {"body_ipos", "body_iquat"} & set(fields):
        moved = np.any(np.abs(fields[name] - nominal(mj_model, name)) > 1e-6, axis=1)
        for body in np.flatnonzero(moved & is_diagonal):
            raise InputError(
                f"the centre of mass of the body {mj_model.body(body).name!r} cannot vary, as MuJoCo has compiled its "
                "mass matrix as a diagonal: give the body an inertial with a small pos in the MJCF, or leave it out."
            )


class _Constants:
    """Computes the constants that follow from fields of a model, as MuJoCo's `mj_setConst` does.

    **Attributes:**

    - `names`: the constants.
    """

    def __init__(self, mj_model: Any, fields: tuple[str, ...]):
        self._model, self._fields = mj_model, fields
        self.names = tuple(name for name in _CONSTANTS if name not in fields and nominal(mj_model, name).size)
        self._key = key_of(mj_model, ["constants", fields, self.names])
        _models[self._key] = self

    def of(self, fields: Fields) -> Fields:
        """The constants of a model with these fields."""
        row = jnp.concatenate([jnp.ravel(fields[name]) for name in self._fields])
        shapes = [jax.ShapeDtypeStruct(nominal(self._model, name).shape, jnp.float32) for name in self.names]
        if jax.default_backend() == "cpu":
            found = _host.call(_TARGET, [row], shapes, model=self._key)
        else:
            found = jax.pure_callback(self._on_host, shapes, row, vmap_method="broadcast_all")
        return dict(zip(self.names, found, strict=True))

    def run(self, rows: np.ndarray, outputs: list[np.ndarray]) -> None:
        """Computes them for every row."""
        batch = Batch(self._model, math.prod(rows.shape[:-1]), 1)
        write_fields([batch.expand(name) for name in self._fields], rows)
        with without_warnings():
            batch.set_const()
        for name, output in zip(self.names, outputs, strict=True):
            found = batch.expanded(name)
            output[...] = np.reshape(nominal(self._model, name) if found is None else found, output.shape)

    def _on_host(self, rows: Any) -> list[np.ndarray]:
        rows = np.asarray(rows)
        outputs = [np.empty((*rows.shape[:-1], *nominal(self._model, name).shape), np.float32) for name in self.names]
        self.run(rows, outputs)
        return outputs


_models: dict[int, _Constants] = {}


def _constants_on_host(attributes: dict[str, int], inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    _models[attributes["model"]].run(inputs[0], outputs)


_host.register(_TARGET, _constants_on_host)
