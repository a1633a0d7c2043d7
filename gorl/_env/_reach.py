"""What reaches into an episode while it goes on: forces on its bodies, and values of its commands."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._command import Command
from ._robot import MujocoEnv

# The commands of MuJoCo Playground's joystick tasks, in the order of `state.info["command"]`.
_OF_JOYSTICK = (("forward", "lin_vel_x", "m/s"), ("sideways", "lin_vel_y", "m/s"), ("turn", "ang_vel_yaw", "rad/s"))


def commands_of(env: Any, state: Any) -> dict[str, Command]:
    """The commands of an environment by name: those of a `gorl.MujocoEnv` and of Playground's joystick tasks.

    **Arguments:**

    - `env`: the environment.
    - `state`: a state of it, or its shapes.
    """
    if isinstance(env, MujocoEnv):
        return env.commands
    info: Any = getattr(_of_task(state), "info", {})
    config: Any = getattr(env, "_config", None)
    if config is None or getattr(info.get("command"), "shape", None) != (len(_OF_JOYSTICK),):
        return {}
    own = config.get("command_config") or {}
    for source in (config, own):
        if "lin_vel_x" in source:
            ranges = [tuple(source[name]) for _, name, _ in _OF_JOYSTICK]
            break
    else:
        if "min" in own:
            ranges = list(zip(own["min"], own["max"], strict=True))
        elif "a" in own:
            ranges = [(-size, size) for size in own["a"]]
        else:
            return {}
    return {
        name: Command(float(low), float(high), unit)
        for (name, _, unit), (low, high) in zip(_OF_JOYSTICK, ranges, strict=True)
    }


def with_commands(env: Any, state: Any, values: Float[Array, " commands"], is_fixed: Bool[Array, " commands"]) -> Any:
    """A state of an environment some of whose commands have other values.

    **Arguments:**

    - `env`: the environment, whose commands are those of [`commands_of`][].
    - `state`: a state of it, with or without a randomization.
    - `values`: in the order of [`commands_of`][].
    - `is_fixed`: which of the commands get their value.

    **Returns:**

    The state. The policy sees the values at once in a `gorl.MujocoEnv`, and one step later in Playground's tasks.
    """
    if values.size == 0:
        return state
    if (task_state := _of_task(state)) is not state:  # the noise of the sensors stays
        after = with_commands(env, task_state, values, is_fixed)
        obs = jax.tree.map(lambda seen, old, new: seen + (new - old), state.obs, task_state.obs, after.obs)
        return dataclasses.replace(state, state=after, obs=obs)
    if isinstance(env, MujocoEnv):
        return env.with_commands(state, jnp.where(is_fixed, values, env.command(state.data)))
    before = state.info["command"]
    info = state.info | {"command": jnp.where(is_fixed, values, before).astype(before.dtype)}
    return dataclasses.replace(state, info=info)


def num_bodies(state: Any) -> int:
    """The number of bodies of a state that forces can act on; 0 where it has no MuJoCo data."""
    data: Any = getattr(state, "data", None)
    return data.xfrc_applied.shape[0] if hasattr(data, "xfrc_applied") and hasattr(data, "replace") else 0


def under_force(state: Any, force: Float[Array, "bodies 6"], step: Callable[[Any], Any]) -> Any:
    """Takes a step during which forces act on bodies.

    **Arguments:**

    - `state`: a state with MuJoCo's data, with or without a randomization.
    - `force`: the force on each body in N, and the torque about its centre of mass in N m, in the frame of the world.
    - `step`: from a state to the next state and anything else.

    **Returns:**

    What `step` returns. The forces are gone from the next state, unless the task applies forces of its own.
    """
    before = state.data.xfrc_applied
    pushed = before + force.astype(before.dtype)
    after, result = step(_with_force(state, pushed))
    found = after.data.xfrc_applied
    return _with_force(after, jnp.where(found == pushed, before, found)), result


def _with_force(state: Any, force: Array) -> Any:
    if (task_state := _of_task(state)) is not state:
        return dataclasses.replace(state, state=_with_force(task_state, force))
    return dataclasses.replace(state, data=state.data.replace(xfrc_applied=force))


def _of_task(state: Any) -> Any:
    """The task's own state in one of a randomized task."""
    if not hasattr(state, "data"):
        return state
    from ._randomized import RandomizedState  # imports MuJoCo, which has made this state

    return state.state if isinstance(state, RandomizedState) else state
