"""The DeepMind Control tasks of MuJoCo Playground, simulated by MJX."""

import sys
from typing import Any

from .._errors import InputError
from ._base import EnvConfig
from ._implementation import implementation_or_default, import_mjx
from ._scene import Pose, Scene

# Observation and action sizes, so that listing them neither imports MuJoCo nor traces every task. A test compares them
# with the environments.
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


def load(config: EnvConfig) -> Any:
    """The MuJoCo Playground environment that `config` names."""
    import_mjx()
    try:
        from mujoco_playground import dm_control_suite

        from ._quiet import without_warnings
    except ImportError as error:
        raise InputError(
            f"{config} is a task of MuJoCo Playground, which cannot be imported ({error}): pip install playground."
        ) from error
    implementation = implementation_or_default(config.implementation)
    with without_warnings():
        if implementation != "mujoco":
            return dm_control_suite.load(str(config), config_overrides={"impl": implementation})
        from ._mujoco import with_engine

        return with_engine(dm_control_suite.load(str(config), config_overrides={"impl": "jax"}))


def is_task(env: Any) -> bool:
    """Whether an environment is one of Playground's class, which then has been imported."""
    module = sys.modules.get("mujoco_playground._src.mjx_env")
    return module is not None and isinstance(env, module.MjxEnv)


def simulated(env: Any, implementation: str | None) -> Any:
    """A user's task of Playground's class, which itself chooses between MJX in JAX and in Warp.

    **Raises:**

    `gorl.InputError` if the implementation is one that it has not been made with.
    """
    if implementation_or_default(implementation) == "mujoco":
        from ._mujoco import with_engine

        try:
            return with_engine(env)
        except InputError:
            if implementation is None:  # then its own implementation simulates it, more slowly
                return env
            raise
    own = str(env.mjx_model.impl.value)
    if implementation not in (None, own):
        raise InputError(
            f"{type(env).__name__} has been made with impl={own!r}, which env.implementation cannot change: leave it "
            "out, or make the environment with the other."
        )
    return env


def scene(env: Any) -> Scene | None:
    """The scene of an environment of MuJoCo Playground, or of one like it; `None` for any other."""
    if not hasattr(env, "mj_model") or not hasattr(env, "dt"):
        return None
    return Scene(env.mj_model, _pose, float(env.dt))


def _pose(state: Any) -> Pose:
    if not hasattr(state, "data"):
        raise InputError("states of this environment have no MuJoCo data to draw: give them a field data.")
    # Tasks move their targets by mocap.
    return {name: getattr(state.data, name) for name in ("qpos", "mocap_pos", "mocap_quat")}
