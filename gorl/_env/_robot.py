"""Users' tasks on a MuJoCo model."""

import abc
import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, UInt32

from .._errors import InputError, unknown_name
from .._tree import all_finite
from .._types import RandomKey
from ._command import Command, parse_commands
from ._implementation import import_mjx
from ._randomization import Model


@runtime_checkable
class Physics(Protocol):
    """The dynamics of one model, as pure functions of MJX's data."""

    def make_data(self) -> Any:
        """The model's default state, with nothing derived."""
        ...

    def forward(self, data: Any, /) -> Any:
        """Derives all quantities from the state."""
        ...

    def step(self, data: Any, num_steps: int, /) -> Any:
        """Takes physics steps. Derived quantities belong to the state before the last step."""
        ...


class MujocoState(eqx.Module):
    """One state of a [`gorl.MujocoEnv`][].

    **Attributes:**

    - `data`: MJX's data.
    - `obs`: the observation, or each of its parts.
    - `reward`: of the step that led here.
    - `done`: whether the episode terminated.
    - `metrics`: `"reward/NAME"` and `"terminated/NAME"` of rewards and terminations that have names, and
        `"measure/NAME"` of what is measured.
    - `command_key`: key data that the task's commands are drawn by; `None` without commands.
    """

    data: Any
    obs: Float[Array, "*batch observation"] | dict[str, Float[Array, "*batch part"]]
    reward: Float[Array, "*batch"]
    done: Bool[Array, "*batch"]
    metrics: dict[str, Float[Array, "*batch"]]
    command_key: UInt32[Array, "*batch 2"] | None = None


class MujocoEnv(abc.ABC):
    """A task of your own: a MuJoCo model, and JAX functions of its data.

    A subclass says where an episode starts, what is observed and what is rewarded, and may say when an episode
    terminates and what an action does. All of them are functions of one simulation, pure, and may be traced. `data` is
    MJX's (`data.qpos`, `data.xpos`, `data.sensordata`...), whatever simulates. As always in MuJoCo, positions and
    velocities are those after a step, and what is derived from them (`xpos`, `sensordata`...) is one physics step
    behind.

    What a task remembers from step to step goes into `data.userdata` (of the length that `<size nuserdata="..."/>`
    gives, with the commands after it); a target that should be seen moves by `data.mocap_pos`; `data.ctrl` holds the
    controls of the last step.

    **Arguments:**

    - `model`: an MJCF file, an XML string, a `mujoco.MjSpec` or a `mujoco.MjModel`.
    - `control_timestep`: seconds that each action is held for.
    - `physics_timestep`: seconds of a physics step; `None` for the model's own.
    - `episode_length`: control steps until the time limit.
    - `commands`: what an episode asks for, by name (see [`gorl.Command`][]). `command` reads them.
    - `command_period`: seconds after which commands are drawn anew; `None` for once an episode.
    - `pose`: the name of a keyframe of the model, or joint targets, one for each actuator. An action is then added to
        it, after multiplication with `action_scale`; `None` for an action that spans the actuators' ranges.
    - `action_scale`: how far an action of 1 is from the pose, in the unit of the actuators.

    **Attributes:**

    - `mj_model`: MuJoCo's model, for names and numbers: `mj_model.body("foot").id`.
    - `commands`, `command_period`, `action_scale`: as given.
    - `pose`: the joint targets; `None` without them.

    **Raises:**

    `gorl.InputError` for a model that does not compile, with MuJoCo's own message; for a control time step that is no
    multiple of the physics time step; and for a pose that the model does not have.
    """

    def __init__(
        self,
        model: Any,
        *,
        control_timestep: float,
        physics_timestep: float | None = None,
        episode_length: int = 1000,
        commands: Mapping[str, Command] | None = None,
        command_period: float | None = None,
        pose: str | Sequence[float] | None = None,
        action_scale: float = 1.0,
    ):
        self.commands = dict(commands or {})
        self.mj_model = compiled(model, len(self.commands))
        if physics_timestep is not None:
            self.mj_model.opt.timestep = physics_timestep
        timestep = float(self.mj_model.opt.timestep)
        self.num_substeps = round(control_timestep / timestep)
        if self.num_substeps < 1 or abs(self.num_substeps * timestep / control_timestep - 1) > 1e-6:
            raise InputError(
                f"the control time step of {type(self).__name__}, {control_timestep:g} s, has to be a multiple of the "
                f"physics time step, {timestep:g} s: change one of them."
            )
        self.dt = control_timestep
        self.episode_length = episode_length
        self.command_period = command_period
        self.pose = self._pose(pose)
        self.action_scale = action_scale
        self._fixed_commands: dict[str, float] = {}
        self._physics: Physics | None = None

    @abc.abstractmethod
    def start(self, data: Any, key: RandomKey) -> Any:
        """The start state of an episode: the default state with another `qpos`, `qvel`... by `data.replace`."""

    @abc.abstractmethod
    def observe(self, data: Any) -> Float[Array, " observation"] | dict[str, Float[Array, " part"]]:
        """The observation: one vector, or a dictionary of them.

        The policy sees the part `"state"`, and critics see `"privileged_state"` where there is one: what a simulation
        knows and a robot does not.
        """

    @abc.abstractmethod
    def reward(self, data: Any, action: Float[Array, " action"]) -> Float[Array, ""] | dict[str, Float[Array, ""]]:
        """The reward of a step to `data` by `action`, which is in `[-1, 1]`.

        Of a dictionary of weighted terms it is the sum. Each of them has a column in the curve of a run.
        """

    def terminates(self, data: Any) -> Bool[Array, ""] | dict[str, Bool[Array, ""]]:
        """Whether the episode terminates, apart from its time limit. A simulation that blows up always does.

        Of a dictionary of reasons any is enough. The share of episodes that each ends has a column in the curve.
        """
        del data
        return jnp.zeros((), bool)

    def measure(self, data: Any) -> dict[str, Float[Array, ""]]:
        """Numbers to watch, such as the error of a velocity, which nothing learns from.

        The mean of each over the steps of an episode has a column in the curve.
        """
        del data
        return {}

    def control(self, data: Any, action: Float[Array, " action"]) -> Any:
        """The controls of an action: the pose and the scaled action, or `[-1, 1]` mapped to each actuator's range."""
        low, high = self.mj_model.actuator_ctrlrange.T
        limited = self.mj_model.actuator_ctrllimited
        if self.pose is not None:
            target = self.pose + self.action_scale * action
            return data.replace(ctrl=jnp.where(limited, jnp.clip(target, low, high), target))
        scaled = low + (action + 1) * (high - low) / 2
        return data.replace(ctrl=jnp.where(limited, scaled, action))

    def command(self, data: Any) -> Float[Array, " commands"]:
        """The present values of the commands, in the order of `commands`."""
        return data.userdata[self.mj_model.nuserdata - len(self.commands) :]

    @property
    def action_size(self) -> int:
        """The length of actions: one number for each actuator, unless `control` is another."""
        return int(self.mj_model.nu)

    @property
    def observation_size(self) -> int | dict[str, int]:
        """The length of observations, or of each part."""
        return jax.tree.map(lambda part: part.shape[0], jax.eval_shape(self.reset, jax.random.key(0)).obs)

    def sensor(self, data: Any, name: str) -> Float[Array, " values"]:
        """The readings of a sensor of the model.

        **Raises:**

        `gorl.InputError` if there is none of that name.
        """
        names = [self.mj_model.sensor(index).name for index in range(self.mj_model.nsensor)]
        if name not in names:
            raise unknown_name("sensor", name, names)
        sensor = self.mj_model.sensor(name)
        begin = int(sensor.adr[0])
        return data.sensordata[begin : begin + int(sensor.dim[0])]

    def reset(self, key: RandomKey) -> MujocoState:
        """The first state of an episode."""
        blank = self.physics.make_data()
        data = self.physics.forward(self._alike("start", blank, self.start(blank, key)))
        command_key = None
        if self.commands:
            data, command_key = self._commanded(data, jax.random.fold_in(key, 1))
        names = jax.eval_shape(lambda data: self._outcome(data, jnp.zeros(self.action_size))[2], data)
        metrics = {name: jnp.zeros(()) for name in names}
        return MujocoState(data, self._observation(data), jnp.zeros(()), jnp.zeros((), bool), metrics, command_key)

    def step(self, state: MujocoState, action: Float[Array, " action"]) -> MujocoState:
        """The state one control step later."""
        data = self._alike("control", state.data, self.control(state.data, action))
        data = self.physics.step(data, self.num_substeps)
        # A NaN would spread to every mean over episodes.
        broken = ~all_finite((data.qpos, data.qvel))
        reward, terminates, metrics = self._outcome(data, action)
        command_key = state.command_key
        if command_key is not None and self.command_period is not None:
            due = jnp.round(data.time / self.dt) % max(1, round(self.command_period / self.dt)) == 0
            drawn = self._commanded(data, jax.random.wrap_key_data(command_key))
            data, command_key = optax.tree.where(due, drawn, (data, command_key))
        obs, reward, metrics = jax.tree.map(
            lambda part: jnp.where(broken, 0.0, part), (self._observation(data), reward, metrics)
        )
        return MujocoState(data, obs, reward, broken | terminates, metrics, command_key)

    def with_commands(self, state: MujocoState, values: Float[Array, " commands"]) -> MujocoState:
        """A state whose commands have these values, in the order of `commands`, until the next ones are drawn."""
        own = state.data.userdata[: self.mj_model.nuserdata - len(self.commands)]
        data = state.data.replace(userdata=jnp.concatenate([own, values.astype(own.dtype)]))
        return dataclasses.replace(state, data=data, obs=self._observation(data))

    def randomize(self, model: Model, key: RandomKey) -> dict[str, Array]:
        """Draws fields of the model for an episode; none, unless a task has a method of its own.

        **Arguments:**

        - `model`: its fields are those of MuJoCo's model: `model.geom_friction`. What `env.randomization` draws comes
            later.
        - `key`: decides what is drawn.

        **Returns:**

        The fields that differ from the model's, by name. Constants that follow from them need not be given.
        """
        del model, key
        return {}

    @property
    def physics(self) -> Physics:
        """The physics: the fastest on the available devices, unless `by` chose another."""
        if self._physics is None:
            # It is kept, so it must not belong to a running trace.
            with jax.ensure_compile_time_eval():
                self._physics = self.by(None)._physics
        assert self._physics is not None
        return self._physics

    def by(self, implementation: str | None) -> "MujocoEnv":
        """This task, simulated by an implementation (see `gorl.EnvConfig`)."""
        import_mjx()
        from ._mujoco import simulated_by

        return simulated_by(self, implementation)

    def with_physics(self, physics: Physics) -> "MujocoEnv":
        """This task, simulated by the given functions."""
        other = copy.copy(self)
        other._physics = physics
        return other

    def commanded(self, text: str) -> "MujocoEnv":
        """This task with some of its commands fixed.

        **Arguments:**

        - `text`: values by name, `"forward=1.0 turn=0"`.

        **Raises:**

        `gorl.InputError` for an unknown command and for a value out of its range.
        """
        other = copy.copy(self)
        other._fixed_commands = parse_commands(text, self.commands, type(self).__name__)
        return other

    def _pose(self, pose: str | Sequence[float] | None) -> np.ndarray | None:
        if pose is None:
            return None
        if isinstance(pose, str):
            names = [self.mj_model.key(index).name for index in range(self.mj_model.nkey)]
            if pose not in names:
                raise unknown_name("keyframe of the model", pose, names)
            targets = self.mj_model.key(pose).ctrl
        else:
            targets = np.asarray(pose, np.float32)
        if targets.shape != (self.mj_model.nu,):
            raise InputError(
                f"the pose of {type(self).__name__} has the shape {targets.shape}: give one target for each of the "
                f"{self.mj_model.nu} actuators."
            )
        return targets.astype(np.float32)

    def _commanded(self, data: Any, key: RandomKey) -> tuple[Any, Array]:
        """The data with fresh commands, and the key data for the next ones."""
        next_key, *keys = jax.random.split(key, len(self.commands) + 1)
        values = [
            jnp.asarray(self._fixed_commands[name]) if name in self._fixed_commands else command.draw(command_key)
            for (name, command), command_key in zip(self.commands.items(), keys, strict=True)
        ]
        own = data.userdata[: self.mj_model.nuserdata - len(values)]
        return data.replace(userdata=jnp.concatenate([own, jnp.stack(values)])), jax.random.key_data(next_key)

    def _outcome(self, data: Any, action: Array) -> tuple[Array, Array, dict[str, Array]]:
        """The reward, whether the episode terminates, and what of both has a name."""
        reward, terminates = self.reward(data, action), self.terminates(data)
        metrics = {}
        if isinstance(reward, dict):
            terms = {f"reward/{name}": self._scalar("reward", term) for name, term in reward.items()}
            reward, metrics = sum(terms.values(), jnp.zeros(())), metrics | terms
        if isinstance(terminates, dict):
            reasons = {f"terminated/{name}": self._scalar("terminates", is_met) for name, is_met in terminates.items()}
            metrics |= {name: is_met.astype(jnp.float32) for name, is_met in reasons.items()}
            terminates = jnp.any(jnp.stack(list(reasons.values())))
        metrics |= {f"measure/{name}": self._scalar("measure", value) for name, value in self.measure(data).items()}
        return self._scalar("reward", reward), self._scalar("terminates", terminates), metrics

    def _alike(self, method: str, before: Any, after: Any) -> Any:
        """The data that a method returned, with the types of its argument."""
        if type(after) is not type(before):
            raise InputError(
                f"{type(self).__name__}.{method} must return the data with other values, by data.replace, not "
                f"{type(after).__name__}."
            )

        def strong(path: Any, old: Any, new: Any) -> Array:
            if jnp.shape(new) != jnp.shape(old):
                raise InputError(
                    f"{type(self).__name__}.{method} returns data{jax.tree_util.keystr(path)} of shape "
                    f"{jnp.shape(new)}, where the model has {jnp.shape(old)}: keep the shape."
                )
            return jnp.asarray(new, old.dtype)

        return jax.tree_util.tree_map_with_path(strong, before, after)

    def _observation(self, data: Any) -> Any:
        observation = self.observe(data)
        if isinstance(observation, dict):
            return {name: self._vector(part) for name, part in observation.items()}
        return self._vector(observation)

    def _vector(self, observation: Any) -> Array:
        observation = jnp.asarray(observation)
        if observation.ndim != 1 or not jnp.issubdtype(observation.dtype, jnp.number):
            raise InputError(
                f"{type(self).__name__}.observe must return one vector of numbers, or a dictionary of them, not "
                f"{observation.dtype} of shape {observation.shape}: join its parts with jnp.concatenate, and flatten "
                "them with jnp.ravel."
            )
        return observation.astype(jnp.float32)

    def _scalar(self, method: str, value: Any) -> Array:
        value = jnp.asarray(value)
        if value.shape != ():
            raise InputError(
                f"{type(self).__name__}.{method} must return one number, not an array of shape {value.shape}: take a "
                "sum, a mean or an entry of it."
            )
        return value.astype(bool if method == "terminates" else jnp.float32)


def compiled(model: Any, num_numbers: int = 0) -> Any:
    """MuJoCo's model of an MJCF file, an XML string, an `MjSpec` or an `MjModel`, which is copied.

    **Arguments:**

    - `model`: what to compile.
    - `num_numbers`: numbers to be remembered in `userdata`, after the model's own.

    **Raises:**

    `gorl.InputError` for a model that does not compile, with MuJoCo's own message.
    """
    import mujoco

    from ._quiet import without_warnings

    mj_model: Any = mujoco.MjModel  # pyright: ignore[reportAttributeAccessIssue]
    mj_spec: Any = mujoco.MjSpec  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(model, mj_model):
        if num_numbers:
            raise InputError("a task with commands takes no mujoco.MjModel: give its MJCF file or a mujoco.MjSpec.")
        return copy.copy(model)
    where = "this MuJoCo model"
    try:
        with without_warnings():
            if isinstance(model, mj_spec):
                return _with_numbers(model.copy(), num_numbers).compile()
            if isinstance(model, str) and model.lstrip().startswith("<"):
                return _with_numbers(mj_spec.from_string(model), num_numbers).compile()
            if isinstance(model, str | os.PathLike):
                where = f"the MuJoCo model {Path(model)}"
                if not Path(model).is_file():
                    raise InputError(f"there is no file {Path(model)}: give the path of an MJCF file, or XML text.")
                return _with_numbers(mj_spec.from_file(str(model)), num_numbers).compile()
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        message = " ".join(str(error).split())
        raise InputError(f"{where} does not compile: {message.rstrip('.')}.") from error
    raise InputError(
        f"{type(model).__name__} is no MuJoCo model: give an MJCF file, an XML string, a mujoco.MjSpec or a "
        "mujoco.MjModel."
    )


def _with_numbers(spec: Any, num_numbers: int) -> Any:
    spec.nuserdata += num_numbers
    return spec
