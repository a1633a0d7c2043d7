"""The DeepMind Control tasks of MuJoCo Playground, simulated by MJX."""

from typing import Any

import jax

from .._errors import InputError
from ._base import EnvConfig
from ._scene import Pose, Scene

# Observation and action sizes. They stand here so that names and sizes can be listed without importing MuJoCo and
# tracing every task; a test holds them against the environments themselves.
TASKS: dict[str, tuple[int, int]] = {
    "AcrobotSwingup": (6, 1),
    "AcrobotSwingupSparse": (6, 1),
    "BallInCup": (8, 2),
    "CartpoleBalance": (5, 1),
    "CartpoleBalanceSparse": (5, 1),
    "CartpoleSwingup": (5, 1),
    "CartpoleSwingupSparse": (5, 1),
    "CheetahRun": (17, 6),
    "FingerSpin": (9, 2),
    "FingerTurnEasy": (12, 2),
    "FingerTurnHard": (12, 2),
    "FishSwim": (24, 5),
    "HopperHop": (15, 4),
    "HopperStand": (15, 4),
    "HumanoidRun": (67, 21),
    "HumanoidStand": (67, 21),
    "HumanoidWalk": (67, 21),
    "PendulumSwingup": (3, 1),
    "PointMass": (4, 2),
    "ReacherEasy": (6, 2),
    "ReacherHard": (6, 2),
    "SwimmerSwimmer6": (25, 5),
    "WalkerRun": (24, 6),
    "WalkerStand": (24, 6),
    "WalkerWalk": (24, 6),
}

IMPLEMENTATIONS = ("jax", "mujoco", "warp")


def load(config: EnvConfig) -> Any:
    """The MuJoCo Playground environment that `config` names."""
    try:
        from mujoco_playground import dm_control_suite

        from ._quiet import without_warnings
    except ImportError as error:
        raise InputError(
            f"{config} is a task of MuJoCo Playground, which cannot be imported ({error}): pip install playground."
        ) from error
    # Warp without a CUDA device steps one world at a time behind a host callback.
    implementation = config.implementation or ("warp" if _has_cuda() else "jax")
    with without_warnings():
        if implementation != "mujoco":
            return dm_control_suite.load(str(config), config_overrides={"impl": implementation})
        from ._mujoco import with_engine

        return with_engine(dm_control_suite.load(str(config), config_overrides={"impl": "jax"}))


def scene(env: Any) -> Scene | None:
    """How to draw an environment of MuJoCo Playground, or another that is made like one; `None` if it is not."""
    if not hasattr(env, "mj_model") or not hasattr(env, "dt"):
        return None
    return Scene(env.mj_model, _pose, float(env.dt))


def _pose(state: Any) -> Pose:
    if not hasattr(state, "data"):
        raise InputError("states of this environment have no MuJoCo data to draw: give them a field data.")
    # Tasks move their targets by mocap.
    return {name: getattr(state.data, name) for name in ("qpos", "mocap_pos", "mocap_quat")}


def _has_cuda() -> bool:
    return any("cuda" in str(device.client.platform_version).casefold() for device in jax.devices())
