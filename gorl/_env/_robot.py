"""Users' tasks on a MuJoCo model."""

import abc
import copy
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._errors import InputError, unknown_name
from .._tree import all_finite
from .._types import RandomKey
from ._implementation import import_mjx


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
    - `obs`: the observation.
    - `reward`: of the step that led here.
    - `done`: whether the episode terminated.
    """

    data: Any
    obs: Float[Array, "*batch observation"]
    reward: Float[Array, "*batch"]
    done: Bool[Array, "*batch"]


class MujocoEnv(abc.ABC):
    """A task of your own: a MuJoCo model, and JAX functions of its data.

    A subclass says where an episode starts, what is observed and what is rewarded, and may say when an episode
    terminates and what an action does. All of them are functions of one simulation, pure, and may be traced. `data` is
    MJX's (`data.qpos`, `data.xpos`, `data.sensordata`...), whatever simulates. As always in MuJoCo, positions and
    velocities are those after a step, and what is derived from them (`xpos`, `sensordata`...) is one physics step
    behind.

    What a task remembers from step to step goes into `data.userdata` (of the length that `<size nuserdata="..."/>`
    gives); a target that should be seen moves by `data.mocap_pos`; `data.ctrl` holds the controls of the last step.

    **Arguments:**

    - `model`: an MJCF file, an XML string, a `mujoco.MjSpec` or a `mujoco.MjModel`.
    - `control_timestep`: seconds that each action is held for.
    - `physics_timestep`: seconds of a physics step; `None` for the model's own.
    - `episode_length`: control steps until the time limit.

    **Attributes:**

    - `mj_model`: MuJoCo's model, for names and numbers: `mj_model.body("foot").id`.

    **Raises:**

    `gorl.InputError` for a model that does not compile, with MuJoCo's own message; and for a control time step that is
    no multiple of the physics time step.
    """

    def __init__(
        self,
        model: Any,
        *,
        control_timestep: float,
        physics_timestep: float | None = None,
        episode_length: int = 1000,
    ):
        self.mj_model = compiled(model)
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
        self._physics: Physics | None = None

    @abc.abstractmethod
    def start(self, data: Any, key: RandomKey) -> Any:
        """The start state of an episode: the default state with another `qpos`, `qvel`... by `data.replace`."""

    @abc.abstractmethod
    def observe(self, data: Any) -> Float[Array, " observation"]:
        """The observation: one vector."""

    @abc.abstractmethod
    def reward(self, data: Any, action: Float[Array, " action"]) -> Float[Array, ""]:
        """The reward of a step to `data` by `action`, which is in `[-1, 1]`."""

    def terminates(self, data: Any) -> Bool[Array, ""]:
        """Whether the episode terminates, apart from its time limit. A simulation that blows up always does."""
        del data
        return jnp.zeros((), bool)

    def control(self, data: Any, action: Float[Array, " action"]) -> Any:
        """The controls of an action: by default `[-1, 1]` is mapped to the range of each actuator that has one."""
        low, high = self.mj_model.actuator_ctrlrange.T
        scaled = low + (action + 1) * (high - low) / 2
        return data.replace(ctrl=jnp.where(self.mj_model.actuator_ctrllimited, scaled, action))

    @property
    def action_size(self) -> int:
        """The length of actions: one number for each actuator, unless `control` is another."""
        return int(self.mj_model.nu)

    @property
    def observation_size(self) -> int:
        """The length of observations."""
        return jax.eval_shape(self.reset, jax.random.key(0)).obs.shape[0]

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
        return MujocoState(data, self._observation(data), jnp.zeros(()), jnp.zeros((), bool))

    def step(self, state: MujocoState, action: Float[Array, " action"]) -> MujocoState:
        """The state one control step later."""
        data = self._alike("control", state.data, self.control(state.data, action))
        data = self.physics.step(data, self.num_substeps)
        # A NaN would spread to every mean over episodes.
        broken = ~all_finite((data.qpos, data.qvel))
        obs = jnp.where(broken, 0.0, self._observation(data))
        reward = jnp.where(broken, 0.0, self._scalar("reward", self.reward(data, action)))
        return MujocoState(data, obs, reward, broken | self._scalar("terminates", self.terminates(data)))

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

    def _observation(self, data: Any) -> Array:
        observation = jnp.asarray(self.observe(data))
        if observation.ndim != 1 or not jnp.issubdtype(observation.dtype, jnp.number):
            raise InputError(
                f"{type(self).__name__}.observe must return one vector of numbers, not {observation.dtype} of shape "
                f"{observation.shape}: join its parts with jnp.concatenate, and flatten them with jnp.ravel."
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


def compiled(model: Any) -> Any:
    """MuJoCo's model of an MJCF file, an XML string, an `MjSpec` or an `MjModel`, which is copied.

    **Raises:**

    `gorl.InputError` for a model that does not compile, with MuJoCo's own message.
    """
    import mujoco

    from ._quiet import without_warnings

    mj_model: Any = mujoco.MjModel  # pyright: ignore[reportAttributeAccessIssue]
    mj_spec: Any = mujoco.MjSpec  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(model, mj_model):
        return copy.copy(model)
    where = "this MuJoCo model"
    try:
        with without_warnings():
            if isinstance(model, mj_spec):
                return model.compile()
            if isinstance(model, str) and model.lstrip().startswith("<"):
                return mj_model.from_xml_string(model)
            if isinstance(model, str | os.PathLike):
                where = f"the MuJoCo model {Path(model)}"
                if not Path(model).is_file():
                    raise InputError(f"there is no file {Path(model)}: give the path of an MJCF file, or XML text.")
                return mj_model.from_xml_path(str(model))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        message = " ".join(str(error).split())
        raise InputError(f"{where} does not compile: {message.rstrip('.')}.") from error
    raise InputError(
        f"{type(model).__name__} is no MuJoCo model: give an MJCF file, an XML string, a mujoco.MjSpec or a "
        "mujoco.MjModel."
    )
