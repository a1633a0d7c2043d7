"""What it takes to draw an environment."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Float

# Fields of MuJoCo's data, which decide between them where everything is.
Pose: TypeAlias = dict[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """How MuJoCo's renderer sees an environment.

    **Arguments:**

    - `model`: MuJoCo's model of it.
    - `pose`: takes from one state what says where everything is.
    - `seconds`: how long a control step lasts.
    """

    model: Any  # mujoco.MjModel, a type that is not there until something imports MuJoCo
    pose: Callable[[Any], Pose]
    seconds: float
