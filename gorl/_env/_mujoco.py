"""Environments with a MuJoCo model, and the implementations that simulate them."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from mujoco import mjx

from .._errors import InputError
from .._promotion import usual_promotion
from ._engine import DERIVED, Engine, default_data
from ._implementation import implementation_or_default
from ._randomization import Randomization, held_by
from ._randomized import Randomized
from ._rewire import rewire
from ._robot import MujocoEnv, Physics


def simulated_by(env: Any, implementation: str | None) -> Any:
    """A copy of a task that is simulated by an implementation.

    **Arguments:**

    - `env`: a `gorl.MujocoEnv`, a task of MuJoCo Playground, or one written for its `MjxEnv` class.
    - `implementation`: what simulates it; `None` for the fastest one on the available devices.

    **Raises:**

    `gorl.InputError` for a task that this implementation cannot simulate.
    """
    physics = physics_of(env, implementation_or_default(implementation))
    return simulated_with(env)(physics(env.mj_model, ()))


def randomized(
    env: Any, implementation: str | None, randomization: Randomization, policy_part: str | None
) -> Randomized:
    """A task whose episodes differ from each other.

    **Arguments:**

    - `env`: a `gorl.MujocoEnv`, or a task of MuJoCo Playground's class.
    - `implementation`: what simulates it.
    - `randomization`: what is drawn for an episode.
    - `policy_part`: the part of the observation that the policy sees; `None` for the whole observation.
    """
    physics = physics_of(env, implementation_or_default(implementation))
    return Randomized(env, simulated_with(env), physics, randomization, policy_part)


def simulated_with(env: Any) -> Callable[[Physics], Any]:
    """A function that gives a task, simulated by any physics."""
    return env.with_physics if isinstance(env, MujocoEnv) else functools.partial(_rewired, env)


def physics_of(env: Any, implementation: str) -> Callable[[Any, tuple[str, ...]], Any]:
    """A function from a model of a task, and the names of its fields that vary, to its dynamics."""
    if implementation == "jax":
        return lambda model, _: _MJX(model)
    derived = _derived_that_are_read(env.mj_model, env.action_size, simulated_with(env))
    if implementation == "mujoco":
        return lambda model, fields: Engine(model, derived, fields)
    from ._warp import Warp  # takes a package that is there only beside a CUDA device

    return lambda model, _: Warp(model, derived, getattr(env, "_config", {}).get("njmax", 0))


class _MJX:
    """MJX's own dynamics of a model, in JAX."""

    def __init__(self, model: Any):
        try:
            self._model = mjx.put_model(model, impl="jax")
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"MJX cannot simulate this model ({error}): change the model, or set env.implementation to mujoco."
            ) from error

    def with_fields(self, fields: Mapping[str, Array]) -> "_MJX":
        """The dynamics of a model with these values of some fields."""
        other = copy.copy(self)
        other._model = self._model.tree_replace(held_by(self._model, fields))
        return other

    def make_data(self) -> mjx.Data:
        return mjx.make_data(self._model, impl="jax")

    @usual_promotion()
    def forward(self, data: mjx.Data) -> mjx.Data:
        return mjx.forward(self._model, data)

    @usual_promotion()
    def step(self, data: mjx.Data, num_steps: int) -> mjx.Data:
        return jax.lax.scan(lambda data, _: (mjx.step(self._model, data), None), data, None, num_steps)[0]


def _rewired(env: Any, physics: Physics) -> Any:
    """A copy of a task whose methods call `physics` in place of MJX."""

    def checked(mjx_model: Any) -> None:
        if mjx_model is not env.mjx_model:
            raise InputError(
                "this task simulates another model than its mjx_model, which MuJoCo's engine cannot: set "
                "env.implementation to jax."
            )

    def make_data(*_: Any, **__: Any) -> mjx.Data:
        return physics.make_data()

    def forward(mjx_model: Any, data: mjx.Data) -> mjx.Data:
        checked(mjx_model)
        return physics.forward(data)

    def step(mjx_model: Any, data: mjx.Data) -> mjx.Data:
        checked(mjx_model)
        return physics.step(data, 1)

    def step_with(mjx_model: Any, data: mjx.Data, action: Array, n_substeps: int = 1) -> mjx.Data:
        checked(mjx_model)
        return physics.step(data.replace(ctrl=action), n_substeps)

    # A task of our own uses it already.
    from mujoco_playground._src import mjx_env

    return rewire(env, {mjx.make_data: make_data, mjx.forward: forward, mjx.step: step, mjx_env.step: step_with})


class _Recorder:
    """Physics that returns given derived quantities, to record which ones a task uses."""

    def __init__(self, default: mjx.Data):
        self._default = default
        self.given: dict[str, Array] = {}
        self.has_stepped = False

    def make_data(self) -> mjx.Data:
        return jax.tree.map(jnp.asarray, self._default)

    def forward(self, data: mjx.Data) -> mjx.Data:
        return data.replace(**self.given)

    def step(self, data: mjx.Data, num_steps: int) -> mjx.Data:
        del num_steps
        self.has_stepped = True
        return data.replace(**self.given)


def _derived_that_are_read(model: Any, action_size: int, by: Callable[[Physics], Any]) -> list[str]:
    """The derived quantities that a task's reset and step use. Copying the others would take a fifth of the time.

    **Arguments:**

    - `by`: gives the task, simulated by given physics.
    """
    default = default_data(model, DERIVED)
    recorder = _Recorder(default)
    task = by(recorder)
    derived = {name: jax.ShapeDtypeStruct(np.shape(getattr(default, name)), jnp.float32) for name in sorted(DERIVED)}
    read: set[str] = set()

    def trace(method: Callable[..., Any], *arguments: Any) -> Any:
        def run(derived: dict[str, Array], *arguments: Any) -> tuple[Any, Any]:
            recorder.given = derived
            state = method(*arguments)
            return _with_data(state, None), state.data

        jaxpr, (rest, data) = jax.make_jaxpr(run, return_shape=True)(derived, *arguments)
        used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
        # Passing the data from step to step does not count as a use.
        used |= {id(variable) for variable in jaxpr.jaxpr.outvars[: len(jax.tree.leaves(rest))]}
        read.update(name for name, variable in zip(derived, jaxpr.jaxpr.invars, strict=False) if id(variable) in used)
        return _with_data(rest, data)

    state = trace(task.reset, jax.random.key(0))
    trace(task.step, state, jax.ShapeDtypeStruct((action_size,), jnp.float32))
    if not recorder.has_stepped:
        raise InputError(
            f"{type(task).__name__}.step does not come to mjx.step by a way that can lead to MuJoCo's engine, such as "
            "a method or a function that names it: set env.implementation to jax."
        )
    return [name for name in DERIVED if name in read]


def _with_data(state: Any, data: Any) -> Any:
    state = copy.copy(state)
    object.__setattr__(state, "data", data)  # states are frozen
    return state
