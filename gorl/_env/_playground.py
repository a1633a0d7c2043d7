"""The tasks of MuJoCo Playground."""

import contextlib
import io
import sys
from typing import Any

import jax.numpy as jnp

from .._errors import InputError
from ._base import EnvConfig
from ._implementation import implementation_or_default, import_mjx
from ._rewire import rewire
from ._scene import Pose, Scene

# Observation and action sizes, so that listing them neither imports MuJoCo nor traces every task. A test compares them
# with the environments. Of an observation in parts it is the size of what the policy sees.
SUITE: dict[str, tuple[int, int]] = {
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
ROBOTS: dict[str, tuple[int, int]] = {
    "ApolloJoystickFlatTerrain": (112, 32),
    "BarkourJoystick": (465, 12),
    "BerkeleyHumanoidJoystickFlatTerrain": (52, 12),
    "BerkeleyHumanoidJoystickRoughTerrain": (52, 12),
    "G1JoystickFlatTerrain": (103, 29),
    "G1JoystickRoughTerrain": (103, 29),
    "Go1Footstand": (45, 12),
    "Go1Getup": (42, 12),
    "Go1Handstand": (45, 12),
    "Go1JoystickFlatTerrain": (48, 12),
    "Go1JoystickRoughTerrain": (48, 12),
    "H1InplaceGaitTracking": (186, 19),
    "H1JoystickGaitTracking": (113, 19),
    "Op3Joystick": (147, 20),
    "SpotFlatTerrainJoystick": (81, 12),
    "SpotGetup": (30, 12),
    "SpotJoystickGaitTracking": (69, 12),
    "T1JoystickFlatTerrain": (85, 23),
    "T1JoystickRoughTerrain": (85, 23),
    "AeroCubeRotateZAxis": (14, 7),
    "AlohaHandOver": (83, 14),
    "AlohaSinglePegInsertion": (82, 14),
    "LeapCubeReorient": (57, 16),
    "LeapCubeRotateZAxis": (32, 16),
    "PandaOpenCabinet": (55, 8),
    "PandaPickCube": (66, 8),
    "PandaPickCubeCartesian": (70, 3),
    "PandaPickCubeOrientation": (66, 8),
    "PandaRobotiqPushCube": (48, 7),
}
TASKS = SUITE | ROBOTS

# The sizes of what only critics see.
PRIVILEGED: dict[str, int] = {
    "ApolloJoystickFlatTerrain": 224,
    "BerkeleyHumanoidJoystickFlatTerrain": 114,
    "BerkeleyHumanoidJoystickRoughTerrain": 114,
    "G1JoystickFlatTerrain": 216,
    "G1JoystickRoughTerrain": 216,
    "Go1Footstand": 94,
    "Go1Getup": 91,
    "Go1Handstand": 94,
    "Go1JoystickFlatTerrain": 123,
    "Go1JoystickRoughTerrain": 123,
    "SpotFlatTerrainJoystick": 167,
    "T1JoystickFlatTerrain": 180,
    "T1JoystickRoughTerrain": 180,
    "AeroCubeRotateZAxis": 81,
    "LeapCubeReorient": 128,
    "LeapCubeRotateZAxis": 105,
}

# They pass `jnp.clip` an argument by a name that JAX has given up.
_WITH_OLD_CLIP = ("LeapCubeReorient", "PandaRobotiqPushCube")


def load(config: EnvConfig) -> Any:
    """The MuJoCo Playground environment that `config` names."""
    import_mjx()
    try:
        from mujoco_playground import dm_control_suite, locomotion, manipulation

        from ._menagerie import make_robot
        from ._quiet import without_warnings
    except ImportError as error:
        raise InputError(
            f"{config} is a task of MuJoCo Playground, which cannot be imported ({error}): pip install playground."
        ) from error
    name = str(config)
    implementation_or_default(config.implementation)  # one that cannot be had is refused before anything is made
    suite = next(suite for suite in (dm_control_suite, locomotion, manipulation) if name in suite.ALL_ENVS)
    options = suite.get_default_config(name)
    if "impl" in options:
        options.impl = "jax"
    with without_warnings():
        if suite is dm_control_suite:
            task = suite.load(name, config=options)
        else:  # their own function downloads
            task = make_robot(name, suite._envs[name], config=options)
            if name in _WITH_OLD_CLIP:
                task = rewire(task, {jnp.clip: _clip})
        return simulated(task, config.implementation)


def _clip(arr: Any, min: Any = None, max: Any = None, *, a_max: Any = None) -> Any:
    return jnp.clip(arr, min, max if a_max is None else a_max)


def randomizer(name: str) -> Any:
    """MuJoCo Playground's own randomiser of a task.

    **Raises:**

    `gorl.InputError` if it has none.
    """
    from mujoco_playground import locomotion, manipulation

    found = None
    for suite in (locomotion, manipulation):
        if name in suite.ALL_ENVS:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints that there is none
                found = suite.get_domain_randomizer(name)
    if found is None:
        raise InputError(f"MuJoCo Playground does not randomise {name}: leave playground out of env.randomization.")

    def randomize(model: Any, rng: Any) -> Any:
        try:
            return found(model, rng)
        except ValueError as error:  # MuJoCo's: some load their robot once more
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"MuJoCo Playground's randomiser of {name} reads files that this machine lacks ({reason}): leave "
                "playground out of env.randomization."
            ) from error

    return randomize


def episode_length(env: Any) -> int | None:
    """The time limit that the config of a task of Playground's class gives; `None` without one."""
    return env._config.get("episode_length") if is_task(env) else None


def placeholders(env: Any) -> tuple[str, ...]:
    """The files of meshes that a task of Playground's class has placeholders for."""
    if not is_task(env):
        return ()
    from ._menagerie import is_placeholder

    return tuple(sorted(name for name, content in getattr(env, "_model_assets", {}).items() if is_placeholder(content)))


def is_task(env: Any) -> bool:
    """Whether an environment is one of Playground's class, which then has been imported."""
    module = sys.modules.get("mujoco_playground._src.mjx_env")
    return module is not None and isinstance(env, module.MjxEnv)


def simulated(env: Any, implementation: str | None) -> Any:
    """A task of Playground's class, made with MJX in JAX or in Warp, simulated by an implementation.

    **Raises:**

    `gorl.InputError` for MJX in JAX if the task has been made with Warp, and for another implementation if it cannot
    simulate the task.
    """
    chosen, own = implementation_or_default(implementation), str(env.mjx_model.impl.value)
    if chosen != "jax":
        from ._mujoco import simulated_by

        try:
            return simulated_by(env, chosen)
        except InputError:
            if implementation is None and own == "jax":  # then this simulates it, more slowly
                return env
            raise
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
