"""Tasks written for MJX, with MuJoCo's own engine in its place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from mujoco import mjx
from mujoco_playground._src import mjx_env

from .._errors import InputError
from ._engine import DERIVED, Engine
from ._rewire import rewire


def with_engine(env: Any) -> Any:
    """A copy of a task that is simulated by MuJoCo's own engine.

    **Arguments:**

    - `env`: a task of MuJoCo Playground, or one written for its `MjxEnv` class.

    **Raises:**

    `gorl.InputError` for a task that the engine cannot simulate.
    """
    engine = Engine(env.mj_model, env.mjx_model, _derived_that_are_read(env))
    return _rewired(env, engine.make_data, engine.forward, engine.step)


def _rewired(env: Any, make_data: Any, forward: Any, step: Any) -> Any:
    def step_with(mjx_model: Any, data: mjx.Data, action: Array, n_substeps: int = 1) -> mjx.Data:
        return step(mjx_model, data.replace(ctrl=action), n_substeps)

    return rewire(env, {mjx.make_data: make_data, mjx.forward: forward, mjx.step: step, mjx_env.step: step_with})


def _derived_that_are_read(env: Any) -> list[str]:
    """The derived quantities that a task's reset and step use. Copying the others would cost a fifth of the time."""
    engine = Engine(env.mj_model, env.mjx_model)
    blank = engine.make_data()
    calls: list[mjx.Data] = []

    derived = {name: jax.ShapeDtypeStruct(np.shape(getattr(blank, name)), jnp.float32) for name in sorted(DERIVED)}

    def simulate(mjx_model: Any, data: mjx.Data, num_steps: int = 1) -> mjx.Data:
        del mjx_model, num_steps
        calls.append(data)
        return data.replace(**given)

    task = _rewired(env, engine.make_data, simulate, simulate)
    given: dict[str, Array] = {}
    read: set[str] = set()

    def trace(method: str, *arguments: Any) -> None:
        def run(derived: dict[str, Array], *arguments: Any) -> Any:
            given.update(derived)
            calls.clear()
            state = getattr(task, method)(*arguments)
            # That the data goes on from step to step is no use of it.
            return state.replace(data=None)

        jaxpr = jax.make_jaxpr(run)(derived, *arguments).jaxpr
        used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
        used |= {id(variable) for variable in jaxpr.outvars}
        read.update(name for name, variable in zip(derived, jaxpr.invars, strict=False) if id(variable) in used)

    key = jax.random.key(0)
    trace("reset", key)
    state = jax.eval_shape(_rewired(env, engine.make_data, engine.forward, engine.step).reset, key)
    trace("step", state, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    if not calls:
        raise InputError(
            f"{type(env).__name__}.step does not come to mjx.step by a way that can lead to MuJoCo's engine, such as a "
            "method or a function that names it: set env.implementation to jax."
        )
    return [name for name in DERIVED if name in read]
