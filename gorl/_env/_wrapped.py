"""Refusal of environments that are wrapped for training, and of objects with another interface."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from .._errors import InputError
from ._base import Environment

# Modules of wrappers for training. One that has not been imported wraps nothing.
_WRAPPERS = ("brax.envs.wrappers.training", "mujoco_playground._src.wrapper")


def check_bare(env: Any, name: str) -> None:
    """Checks that an object is an environment of one episode that leaves resets to GoRL.

    **Arguments:**

    - `env`: the object.
    - `name`: its name in messages.

    **Raises:**

    `gorl.InputError` if it is not; it says how to get one.
    """
    if isinstance(env, type):
        raise InputError(f"{env.__name__} is a class: give an environment made of it, such as {env.__name__}().")
    _check_layers(env)
    _check_signatures(env, name)
    if not isinstance(env, Environment):
        missing = [part for part in ("reset", "step", "observation_size", "action_size") if not hasattr(env, part)]
        raise InputError(f"{name} is no environment: it lacks {', '.join(missing)} (see gorl.Environment).")


def _check_layers(env: Any) -> None:
    """Refuses the wrappers of Brax and MuJoCo Playground: their time limit would look like a termination, and their
    reset would hide the last observation of an episode."""
    wrappers = _training_wrappers()
    layers = [env]
    while (inside := getattr(layers[-1], "__dict__", {}).get("env")) is not None:
        layers.append(inside)
    found = [isinstance(layer, wrappers) for layer in layers]
    if not any(found):
        return
    names = " and ".join(type(layer).__name__ for layer, is_wrapper in zip(layers, found, strict=True) if is_wrapper)
    depth = sum(found)
    fix = f"give the environment inside, env{'.env' * depth}" if all(found[:depth]) else "leave them out"
    raise InputError(
        f"this environment comes wrapped in {names}, and batches, time limits and resets are GoRL's part here: {fix}, "
        "and say what an episode is by gorl.EnvConfig (episode_length, action_repeat)."
    )


def _training_wrappers() -> tuple[type, ...]:
    modules = [sys.modules[name] for name in _WRAPPERS if name in sys.modules]
    return tuple(
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, module.Wrapper) and kind is not module.Wrapper
    )


def _check_signatures(env: Any, name: str) -> None:
    for method, arguments in (("reset", ("key",)), ("step", ("state", "action"))):
        if not hasattr(env, method) or _takes(getattr(env, method), len(arguments)):
            continue
        fix = "call it from a class of your own that has both methods"
        if hasattr(env, "step_env") and hasattr(env, "reset_env"):
            # They reset themselves as well.
            fix = "of an environment of Gymnax's call reset_env and step_env, in a class of your own"
        raise InputError(
            f"{name}.{method} must take {' and '.join(arguments)} and nothing else (see gorl.Environment): {fix}."
        )


def _takes(method: Callable[..., Any], count: int) -> bool:
    """Whether a method can be called with so many arguments, as far as Python knows."""
    try:
        signature = inspect.signature(method)
    except ValueError:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
