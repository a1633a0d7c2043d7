"""What differs from episode to episode, by name: the physics of a robot, its sensors and its actuators."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import InputError, unknown_name
from .._imported import imported
from .._types import RandomKey

Fields = dict[str, Array]
Draw = Callable[["Model", RandomKey], Fields]

# Fields of a model that may vary. What collision detection prepares, and what decides sizes, may not.
VARIABLE = (
    *("opt.gravity", "opt.wind", "opt.density", "opt.viscosity"),
    *("body_mass", "body_inertia", "body_ipos", "body_iquat", "body_pos", "body_quat", "qpos0", "qpos_spring"),
    *("jnt_stiffness", "jnt_range", "jnt_solref", "jnt_solimp"),
    *("dof_armature", "dof_damping", "dof_frictionloss", "dof_solref", "dof_solimp"),
    *("geom_friction", "geom_solref", "geom_solimp", "pair_friction", "pair_solref", "pair_solimp"),
    *("actuator_gainprm", "actuator_biasprm", "actuator_dynprm", "actuator_gear", "actuator_forcerange"),
    *("tendon_stiffness", "tendon_damping", "tendon_frictionloss", "site_pos", "site_quat"),
)
_SECONDS_BETWEEN_PUSHES = 5.0


class Model:
    """A model of MuJoCo's, some of whose fields have been drawn already.

    Fields are attributes: `model.body_mass`. `model.mj_model` is MuJoCo's model, for names and indices.
    """

    def __init__(self, mj_model: Any, fields: Fields):
        self.mj_model, self._fields = mj_model, fields

    def __getattr__(self, name: str) -> Array:
        name = "opt.gravity" if name == "gravity" else name
        return self._fields[name] if name in self._fields else jnp.asarray(nominal(self.mj_model, name), jnp.float32)


def nominal(mj_model: Any, name: str) -> np.ndarray:
    """A field of MuJoCo's model; `opt.gravity` is one of its options."""
    return np.asarray(getattr(mj_model.opt, name[4:]) if name.startswith("opt.") else getattr(mj_model, name))


def held_by(mjx_model: Any, fields: Mapping[str, Array]) -> dict[str, Any]:
    """The fields that MJX's model has as well. It lacks some of the constants that MuJoCo's own engine reads."""
    return {name: value for name, value in fields.items() if hasattr(mjx_model, name.split(".")[0])}


def free_joint(mj_model: Any) -> int | None:
    """The first joint by which a body moves freely; `None` without one."""
    free = np.flatnonzero(mj_model.jnt_type == 0)  # mjJNT_FREE
    return int(free[0]) if free.size else None


def root_body(mj_model: Any) -> int:
    """The body that moves freely; the first one without such a body."""
    joint = free_joint(mj_model)
    return 1 if joint is None else int(mj_model.jnt_bodyid[joint])


@dataclasses.dataclass(frozen=True)
class Named:
    """A randomization by name, within a range."""

    name: str
    low: float
    high: float

    def uniform(self, key: RandomKey, shape: tuple[int, ...] = ()) -> Array:
        return jax.random.uniform(key, shape, minval=self.low, maxval=self.high)

    def __call__(self, model: Model, key: RandomKey) -> Fields:
        """Draws fields of the physics."""
        return _PHYSICS[self.name](model, lambda *shape: self.uniform(key, shape))


def _friction(model: Model, draw: Callable[..., Array]) -> Fields:
    factor = draw()  # one for all surfaces, as a floor and what touches it share one friction
    fields = {"geom_friction": model.geom_friction.at[:, 0].multiply(factor)}
    if model.mj_model.npair:
        fields["pair_friction"] = model.pair_friction.at[:, :2].multiply(factor)
    return fields


def _mass(model: Model, draw: Callable[..., Array]) -> Fields:
    factor = draw(model.mj_model.nbody)  # of the density: a heavier body is also harder to turn
    return {"body_mass": model.body_mass * factor, "body_inertia": model.body_inertia * factor[:, None]}


def _load(model: Model, draw: Callable[..., Array]) -> Fields:
    root, mass = root_body(model.mj_model), model.body_mass
    factor = (mass[root] + draw()) / mass[root]
    return {
        "body_mass": mass.at[root].multiply(factor),
        "body_inertia": model.body_inertia.at[root].multiply(factor),
    }


def _center_of_mass(model: Model, draw: Callable[..., Array]) -> Fields:
    return {"body_ipos": model.body_ipos.at[root_body(model.mj_model)].add(draw(3))}


def _gains(model: Model, draw: Callable[..., Array]) -> Fields:
    factor = draw(model.mj_model.nu)
    return {
        "actuator_gainprm": model.actuator_gainprm.at[:, 0].multiply(factor),
        "actuator_biasprm": model.actuator_biasprm.at[:, 1:3].multiply(factor[:, None]),
    }


def _of_joints(field: str) -> Callable[[Model, Callable[..., Array]], Fields]:
    def scaled(model: Model, draw: Callable[..., Array]) -> Fields:
        return {field: getattr(model, field) * draw(model.mj_model.nv)}

    return scaled


def _gravity(model: Model, draw: Callable[..., Array]) -> Fields:
    return {"opt.gravity": model.gravity * draw()}


_PHYSICS: dict[str, Callable[[Model, Callable[..., Array]], Fields]] = {
    "friction": _friction,
    "mass": _mass,
    "load": _load,
    "center_of_mass": _center_of_mass,
    "gains": _gains,
    "damping": _of_joints("dof_damping"),
    "armature": _of_joints("dof_armature"),
    "friction_loss": _of_joints("dof_frictionloss"),
    "gravity": _gravity,
}
_OTHERS = ("push", "noise", "delay")
_SIGNED = ("load", "center_of_mass", "gravity")


@dataclasses.dataclass(frozen=True)
class Randomization:
    """What differs from episode to episode.

    **Attributes:**

    - `draws`: draw fields of the model, one after the other.
    - `push`, `noise`, `delay`: ranges; `None` for none.
    """

    draws: tuple[Draw, ...]
    push: Named | None = None
    noise: Named | None = None
    delay: Named | None = None

    def fields(self, mj_model: Any, key: RandomKey) -> Fields:
        """Draws the fields of the model. A later draw finds what an earlier one has drawn."""
        fields: Fields = {}
        for index, draw in enumerate(self.draws):
            drawn = draw(Model(mj_model, fields), jax.random.fold_in(key, index))
            for name, value in drawn.items():
                if name not in VARIABLE:
                    raise unknown_name("field of the model that can vary", name, VARIABLE)
                shape = nominal(mj_model, name).shape
                if jnp.shape(value) != shape:
                    raise InputError(
                        f"a randomization gives {name} the shape {jnp.shape(value)}, and this model's is {shape}: "
                        "change values alone."
                    )
            fields = fields | {name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()}
        return fields

    def pushed(self, velocity: Array, dt: float, key: RandomKey) -> Array:
        """A horizontal velocity after a control step in which a push may have come: one in five seconds."""
        assert self.push is not None
        whether, angle, size = jax.random.split(key, 3)
        angle = jax.random.uniform(angle, maxval=2 * math.pi)
        push = self.push.uniform(size) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return velocity + jnp.where(jax.random.bernoulli(whether, dt / _SECONDS_BETWEEN_PUSHES), push, 0.0)


def parse_randomization(text: str, first: Sequence[Draw], playground: Callable[[], Draw]) -> Randomization:
    """What a text such as `"friction=0.5:1.25 mass=0.9:1.1 playground my_module:draw"` says.

    **Arguments:**

    - `text`: parts with spaces between them. `"nominal"` leaves out what the environment itself brings.
    - `first`: what the environment itself brings.
    - `playground`: gives MuJoCo Playground's own randomization of the task.

    **Raises:**

    `gorl.InputError` for an unknown name and for a range that is none.
    """
    parts = text.split()
    draws: list[Draw] = [] if "nominal" in parts else list(first)
    others: dict[str, Named] = {}
    for part in parts:
        name, equals, values = part.partition("=")
        if equals:
            named = _named(name, values)
            if name in _OTHERS:
                others[name] = named
            else:
                draws.append(named)
        elif part == "playground":
            draws.append(playground())
        elif ":" in part:
            draws.append(own_draw(imported("randomization", part)))
        elif part != "nominal":
            known = [*(f"{name}=LOW:HIGH" for name in (*_PHYSICS, *_OTHERS)), "playground", "nominal"]
            raise unknown_name("randomization", part, known)
    return Randomization(tuple(draws), **others)


def _named(name: str, text: str) -> Named:
    if name not in (*_PHYSICS, *_OTHERS):
        raise unknown_name("randomization", name, (*_PHYSICS, *_OTHERS))
    low, _, high = text.partition(":")
    try:
        ends = float(low), float(high or low)
    except ValueError:
        raise InputError(f"the randomization {name}={text} has no range: write {name}=0.8:1.2.") from None
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] <= ends[1]):
        raise InputError(f"the range of {name}={text} is upside down: write the smaller number first.")
    if name not in _SIGNED and (ends[0] < 0 or (name == "mass" and ends[0] == 0)):
        raise InputError(f"the range of {name}={text} begins at {ends[0]:g}: {name} must be positive.")
    if name == "delay" and not all(end.is_integer() for end in ends):
        raise InputError(f"the range of {name}={text} is of whole control steps: write delay=0:2.")
    return Named(name, *ends)


def own_draw(function: Any) -> Draw:
    """A user's function as a draw. One whose second argument is called `rng` is of Playground's kind."""
    if list(inspect.signature(function).parameters)[1:2] != ["rng"]:
        return function

    def draw(model: Model, key: RandomKey) -> Fields:
        return of_playground(function, _mjx_model(model), key)

    return draw


def of_playground(function: Any, mjx_model: Any, key: RandomKey) -> Fields:
    """The fields that a randomiser of MuJoCo Playground's kind draws: from a model and keys, a model and its axes."""
    randomized, axes = function(mjx_model, key[None])
    fields = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(axes):
        value = randomized
        for entry in path:
            value = getattr(value, entry.name)
        fields[".".join(entry.name for entry in path)] = value[0]
    return fields


def _mjx_model(model: Model) -> Any:
    from mujoco import mjx

    made = mjx.put_model(model.mj_model, impl="jax")
    return made.tree_replace(dict(model._fields))
