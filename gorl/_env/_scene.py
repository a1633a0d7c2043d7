"""The scene of an environment, for drawing it."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Float

# Fields of MuJoCo's data that decide where everything is.
Pose: TypeAlias = dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """The scene of an environment, for MuJoCo's renderer.

    **Arguments:**

    - `model`: MuJoCo's model.
    - `pose`: the pose of one state.
    - `seconds`: the duration of a control step.
    """

    model: Any  # mujoco.MjModel, a type that is not there until something imports MuJoCo
    pose: Callable[[Any], Pose]
    seconds: float
