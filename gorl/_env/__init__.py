"""Environments by name. A new family is a new module here and a line in [`load_environment`][]."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._errors import InputError, unknown_name
from .._imported import described, imported, not_found
from .._promotion import usual_promotion
from .._tree import all_finite
from . import _brax, _multigoal, _playground
from ._base import EnvConfig as EnvConfig, Environment as Environment
from ._command import Command as Command
from ._description import description as description
from ._episode import (
    EpisodeState as EpisodeState,
    EpisodicEnv as EpisodicEnv,
    StepResult as StepResult,
    restart as restart,
)
from ._implementation import check_implementation
from ._multigoal import MultiGoal as MultiGoal
from ._parts import chosen_parts
from ._randomization import Randomization, own_draw, parse_randomization
from ._reach import (
    commands_of as commands_of,
    num_bodies as num_bodies,
    under_force as under_force,
    with_commands as with_commands,
)
from ._robot import MujocoEnv as MujocoEnv, MujocoState as MujocoState
from ._scene import Pose as Pose, Scene as Scene
from ._wrapped import check_bare

_BUILT_IN: dict[str, tuple[int, int]] = {"MultiGoal": (2, 2)}


def environments() -> dict[str, tuple[int, int]]:
    """Every environment that can be trained on by name, with the sizes of its observations and actions.

    Of an observation in parts it is the size of what the policy sees (see [`gorl.observation_parts`][]).
    """
    return _BUILT_IN | _playground.TASKS | _brax.TASKS


def observation_parts() -> dict[str, dict[str, int]]:
    """The size of each part of an observation, for those of `gorl.environments()` whose observations have parts."""
    return {
        name: {"state": _playground.TASKS[name][0], "privileged_state": size}
        for name, size in _playground.PRIVILEGED.items()
    }


def family(name: str) -> str:
    """The package that the environment `name` comes from."""
    if name in _playground.TASKS:
        return "Playground"
    if name in _brax.TASKS:
        return "Brax"
    return "built in"


def is_robot(name: str) -> bool:
    """Whether an environment is one of MuJoCo Playground's robots."""
    return name in _playground.ROBOTS


def is_suite(name: str) -> bool:
    """Whether an environment is one of the control suite's."""
    return name in _playground.SUITE


def load_environment(config: EnvConfig) -> EpisodicEnv:
    """Loads the environment that `config` names and checks that it can be trained on.

    **Raises:**

    `gorl.InputError` for an unknown name or option (with the nearest ones), for an environment whose observation is
    not a vector of finite numbers, and when JAX computes in 64 bits.
    """
    check_options(config)
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "gorl computes in 32 bits, and jax_enable_x64 is on: set it to False (or JAX_ENABLE_X64=0), for as long as "
            "gorl computes at least."
        )
    return _load(config, jax.default_backend())


def scene(env: Environment) -> Scene:
    """The scene that draws an environment.

    **Raises:**

    `gorl.InputError` for an environment that has no MuJoCo model.
    """
    for module in (_multigoal, _playground, _brax):
        if (found := module.scene(env)) is not None:
            return found
    raise InputError(
        f"{type(env).__name__} has no MuJoCo model to draw: give it an mj_model and a dt, and its states MuJoCo's "
        "data, as MuJoCo Playground's environments have."
    )


def placeholder_meshes(env: EpisodicEnv) -> tuple[str, ...]:
    """The files of a robot's meshes that this machine lacks, in whose place pictures show small placeholders.

    The physics is complete: nothing collides with these meshes, and no inertia comes from them.
    """
    return _playground.placeholders(env.env.whole)


def check_options(config: EnvConfig) -> None:
    """Checks the name and the options, without loading anything.

    **Raises:**

    `gorl.InputError`
    """
    name = config.name
    in_brax = isinstance(name, str) and name in _brax.TASKS
    if isinstance(name, str) and ":" not in name and name not in environments():
        raise not_found("environment", name, environments())
    if config.backend is not None:
        if not in_brax:
            raise InputError(f"env.backend is for Brax's environments, and {config} is none: leave it out.")
        if config.backend not in _brax.BACKENDS:
            raise unknown_name("Brax backend", config.backend, _brax.BACKENDS)
    if config.commands is not None and name in environments():
        raise InputError(f"{config} declares no commands: leave env.commands out.")
    if config.randomization is not None and (in_brax or name in _BUILT_IN):
        raise InputError(f"env.randomization is for MuJoCo's tasks, and {config} is none: leave it out.")
    if config.implementation is not None:
        check_implementation(config.implementation)
        if in_brax or name in _BUILT_IN:
            raise _without_mujoco(config)


# An environment that is dropped from the cache is loaded again. Compiled code stays valid, as its key is the origin.
@functools.lru_cache(maxsize=16)
def _load(config: EnvConfig, platform: str) -> EpisodicEnv:
    # The platform is part of the cache's key, as each has physics of its own.
    name = config.name
    sizes = _sizes(name) if isinstance(name, str) else None
    # Environments that are shipped need JAX's usual rules of promotion; a user's own obeys those of the program.
    rules = contextlib.nullcontext if sizes is None else usual_promotion
    # The cache keeps constants that are made here, so they must not belong to a running trace.
    with jax.ensure_compile_time_eval(), rules():
        if name in _playground.TASKS:
            env = _playground.load(config)
        elif name in _brax.TASKS:
            env = _brax.load(config)
        elif name in _BUILT_IN:
            env = MultiGoal()
        else:
            env = _made(name) if isinstance(name, str) else name.value
            check_bare(env, str(config))
            env = _simulated(env, config)
            sizes = _check(env, str(config))
        assert sizes is not None
        observation_size, action_size = sizes
        parts = chosen_parts(config, observation_size)
        randomized = _with_randomization(env, config, parts.policy)
    own_length = getattr(env, "episode_length", None) or _playground.episode_length(env) or 1000
    episode_length = config.episode_length or int(own_length)
    training_length = min(config.training_length or episode_length, episode_length)
    origin = (*(getattr(config, field.name) for field in dataclasses.fields(config)), platform)
    return EpisodicEnv(
        _Loaded(env, randomized, origin, rules),
        parts.observation_size,
        action_size,
        episode_length,
        training_length,
        config.action_repeat,
        parts.policy,
        parts.critic,
        parts.critic_observation_size,
    )


def _sizes(name: str) -> tuple[int | dict[str, int], int] | None:
    """The size of the observations of a shipped environment, or of each of their parts, and that of its actions."""
    if name not in environments():
        return None
    observation_size, action_size = environments()[name]
    return observation_parts().get(name, observation_size), action_size


def _simulated(env: Any, config: EnvConfig) -> Any:
    """A user's environment, simulated by the implementation that `config` asks for."""
    if isinstance(env, MujocoEnv):
        env = env if config.commands is None else env.commanded(config.commands)
        return env.by(config.implementation)
    if config.commands is not None:
        raise InputError(
            f"env.commands is for a gorl.MujocoEnv that declares commands, and {config} is none: leave it out."
        )
    if _playground.is_task(env):
        return _playground.simulated(env, config.implementation)
    if config.implementation is not None:
        raise _without_mujoco(config)
    return env


def _with_randomization(env: Any, config: EnvConfig, policy_part: str | None) -> Any:
    """An environment whose episodes differ as `config` says."""
    own = [env.randomize] if isinstance(env, MujocoEnv) and type(env).randomize is not MujocoEnv.randomize else []
    if config.randomization is None and not own:
        return env
    if not isinstance(env, MujocoEnv) and not _playground.is_task(env):
        raise InputError(
            "env.randomization is for tasks of MuJoCo Playground and for a gorl.MujocoEnv, and "
            f"{config} is none: leave it out."
        )
    from ._mujoco import randomized

    def playground() -> Any:
        return own_draw(_playground.randomizer(str(config)))

    randomization = parse_randomization(config.randomization or "", own, playground)
    if randomization == Randomization(()):
        return env
    return randomized(env, config.implementation, randomization, policy_part)


def _without_mujoco(config: EnvConfig) -> InputError:
    return InputError(
        "env.implementation is for tasks of MuJoCo Playground and for environments of your own made like them, and "
        f"{config} is none: leave it out."
    )


class _Loaded:
    """An environment that compares and hashes by its origin. It can be static whatever it consists of, and compiled
    code stays valid when it is loaded again.

    **Attributes:**

    - `whole`: the environment, with its nominal model.
    """

    def __init__(
        self,
        env: Any,
        randomized: Any,
        origin: tuple[Hashable, ...],
        rules: Callable[[], contextlib.AbstractContextManager[None]],
    ):
        self.whole, self._played = env, randomized
        self._origin, self._rules = origin, rules
        # Traced once, for the start of an episode, which needs its types, and for its step: tracing takes seconds.
        self.step = jax.jit(self._step)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Loaded) and self._origin == other._origin

    def __hash__(self) -> int:
        return hash(self._origin)

    def reset(self, key: Any) -> Any:
        with self._rules():
            return self._played.reset(key)

    def _step(self, state: Any, action: Any) -> Any:
        # Some environments write into the dicts of the state that they are given, Brax's ant among them.
        state = jax.tree.map(lambda leaf: leaf, state)
        with self._rules():
            return self._played.step(state, action)


def _made(name: str) -> Any:
    found = imported("environment", name)
    if not isinstance(found, type) and (isinstance(found, Environment) or not callable(found)):
        return found
    try:
        return found()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the environment {name!r} cannot be made by a call without arguments: {described(error)}."
        ) from error


def _checked(method: Any, name: str) -> Any:
    """Wraps a method of an environment. A state that is no pytree raises an `InputError`."""

    def call(*arguments: Any) -> Any:
        state = method(*arguments)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if not eqx.is_array_like(leaf):
                kind, part = type(leaf), jax.tree_util.keystr(path)
                what = f"{part} of the state" if part else "the state"
                advice = f"make {kind.__name__} an equinox.Module, or decorate it with flax.struct.dataclass"
                raise InputError(
                    f"{what} that {name} returns is a {kind.__name__}, which JAX cannot look into: "
                    f"{'leave it out' if kind.__module__ == 'builtins' else advice}."
                )
        return state

    return call


def _check(env: Any, name: str) -> tuple[int | dict[str, int], int]:
    """Checks a user's environment by one reset and one step.

    **Returns:**

    The size of its observations, or of each of their parts, and that of its actions.
    """
    action_size = _size(env, name, "action_size")
    # Shapes first, by tracing, as compiling the physics can take a minute.
    reset, step = (jax.jit(_checked(getattr(env, method), f"{name}.{method}")) for method in ("reset", "step"))
    state = jax.eval_shape(reset, jax.random.key(0))
    for part in ("obs", "reward", "done"):
        if not hasattr(state, part):
            raise InputError(f"the state that {name}.reset returns lacks {part!r} (see gorl.Environment).")
    observation_size = _observation_size(env, name, state.obs)
    action = jnp.zeros(action_size)
    for method, seen in (("reset", state), ("step", jax.eval_shape(step, state, action))):
        if jnp.shape(seen.reward) != () or jnp.shape(seen.done) != ():
            raise InputError(
                f"{name}.{method} must return a scalar reward and a scalar done (vmap is applied outside)."
            )
    started = reset(jax.random.key(0))
    after = step(started, action)
    for method, seen in (("reset", started), ("step", after)):
        if not all_finite(seen.obs):
            raise InputError(
                f"the observation that {name}.{method} returns holds NaN or infinity: mend the environment, or leave "
                "out the entries that can be undefined."
            )
    if not bool(jnp.isfinite(after.reward)):
        raise InputError(f"the reward that {name}.step returns is {after.reward}: it must be a finite number.")
    return observation_size, action_size


def _observation_size(env: Any, name: str, observation: Any) -> int | dict[str, int]:
    """The size of an observation, or of each of its parts."""
    if not isinstance(observation, Mapping):
        size = _size(env, name, "observation_size")
        if getattr(observation, "shape", None) != (size,):
            raise InputError(
                f"{name} must give observations that are one vector of observation_size = {size} numbers, or a "
                f"dictionary of vectors, not {jax.tree.map(jnp.shape, observation)}."
            )
        return size
    shapes: dict[str, tuple[int, ...]] = {part: jnp.shape(vector) for part, vector in observation.items()}
    if not shapes or any(len(shape) != 1 or shape[0] < 1 for shape in shapes.values()):
        raise InputError(
            f"each part of the observation of {name} must be one vector of one number or more, and their shapes are "
            f"{shapes}."
        )
    return {part: shape[0] for part, shape in shapes.items()}


def _size(env: Any, name: str, part: str) -> int:
    """A size that an environment declares. The property may simulate to find it out."""
    size = getattr(env, part)
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if number < 1:
        what = "observations" if part == "observation_size" else "actions"
        raise InputError(
            f"{name}.{part} must be a whole number of at least 1, not {size!r}: give it {what} that are one vector of "
            "one number or more."
        )
    return number
