"""The interface of environments, and their configuration."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import equinox as eqx

from .._hyperparameters import static_field


@runtime_checkable
class Environment(Protocol):
    """The interface that Brax's and MuJoCo Playground's environments share. Any object with it can be trained on.

    Both methods are pure functions of one environment: GoRL applies `jax.vmap`, the time limit and the resets.

    - `reset(key) -> state` starts an episode from a start state that `key` decides.
    - `step(state, action) -> state` moves on by one control step; `action` is a vector in `[-1, 1]`.
    - `observation_size` and `action_size` are integers; the former is not read of an observation in parts.
    - `episode_length` is optional: the number of control steps until the time limit (1000 if there is none).

    A state is any pytree with the attributes `obs` (a vector, or a dictionary of vectors: an observation in parts),
    `reward` (a scalar) and `done` (a scalar, true or 1 where the episode terminated; running into the time limit is no
    termination).
    """

    @property
    def observation_size(self) -> Any: ...

    @property
    def action_size(self) -> int: ...

    def reset(self, rng: Any, /) -> Any: ...

    def step(self, state: Any, action: Any, /) -> Any: ...


@dataclasses.dataclass(frozen=True, eq=False)
class _Instance:
    """An environment without a name. It compares by identity, as the environment may not be hashable."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Instance) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


def _hold(value: Any) -> "str | _Instance":
    return value if isinstance(value, str | _Instance) else _Instance(value)


class EnvConfig(eqx.Module):
    """An environment and its episodes.

    **Arguments:**

    - `name`: the name of an environment, see `gorl.environments()`: `"CheetahRun"` or `"Go1JoystickFlatTerrain"` for a
        task of MuJoCo Playground, `"brax/ant"` for one of Brax's, `"MultiGoal"` for the built-in one;
        `"package.module:attribute"` for your own (the attribute is an environment, or a function of no arguments that
        returns one); or the environment itself.
    - `episode_length`: control steps until the time limit; `None` for the environment's own.
    - `training_length`: control steps after which an episode is cut short in training, so that a small budget sees many
        start states; `None` for `episode_length`. A cut is a truncation, which the learner does not take for an end.
    - `staggered`: begin training with a random part of each worker's time limit already over, so that episodes that
        never terminate do not all end, and teach their ends, at once.
    - `action_repeat`: how many control steps each action is held for.
    - `policy_observation`: of an observation in parts, the part that the policy sees, and with it decoders and exports;
        `None` for `"state"`, or for the only part.
    - `critic_observation`: the part that critics see, which nothing needs after training; `None` for
        `"privileged_state"` where there is one, else for what the policy sees.
    - `backend`: the physics of a Brax environment: `"spring"`, `"positional"`, `"generalized"` or `"mjx"`; `None` for
        the environment's default.
    - `implementation`: what simulates a MuJoCo Playground task or a `gorl.MujocoEnv`: `"mujoco"`, which is MuJoCo's
        own engine on the cores of a CPU, or MJX in `"jax"` or in `"warp"`; `None` for Warp on a CUDA device, MuJoCo on
        a CPU and MJX in JAX elsewhere.
    - `commands`: fixed values for commands of a `gorl.MujocoEnv`, as `"forward=1.0 turn=0"`; `None` to draw them.
    - `randomization`: what of a robot differs from episode to episode, as `"friction=0.5:1.25 mass=0.9:1.1"`; the guide
        on robots lists the names. `None` for what the environment itself brings, `"nominal"` for nothing.
    """

    name: str | _Instance = eqx.field(static=True, converter=_hold)
    episode_length: int | None = static_field(None)
    training_length: int | None = static_field(None)
    staggered: bool = eqx.field(static=True, default=False)
    action_repeat: int = static_field(1)
    policy_observation: str | None = eqx.field(static=True, default=None)
    critic_observation: str | None = eqx.field(static=True, default=None)
    backend: str | None = eqx.field(static=True, default=None)
    implementation: str | None = eqx.field(static=True, default=None)
    commands: str | None = eqx.field(static=True, default=None)
    randomization: str | None = eqx.field(static=True, default=None)

    def __str__(self) -> str:
        return self.name if isinstance(self.name, str) else type(self.name.value).__name__
