"""What a controller has to know of the environment that a policy was trained in."""

import json
from typing import Any

import numpy as np

from ._base import EnvConfig
from ._episode import EpisodicEnv


def description(config: EnvConfig, env: EpisodicEnv) -> dict[str, str]:
    """The environment in words for the metadata of an exported policy: each value is JSON.

    **Returns:**

    - `task`, `observation_part` (`null` for the whole observation), `observation_size`, `action_size`.
    - `control_timestep`: seconds between two actions, where the environment says so by its `dt`.
    - `actuators`, `joints`: names in the order of actions, where there is a MuJoCo model; `null` for an actuator that
        moves no single joint.
    - `control_range`, `kp`, `kd`: of each actuator; the range is `null` where there is none, and the gains are those of
        a position servo, 0 for others.
    - `pose`, `action_scale`: joint targets are `pose + action_scale * action`, for a `gorl.MujocoEnv` with a pose.
    - `commands`: the range and the unit of each command, in the order of the observation's commands.
    """
    task = env.env.whole
    found: dict[str, Any] = {
        "task": str(config),
        "observation_part": env.policy_part,
        "observation_size": env.observation_size,
        "action_size": env.action_size,
    }
    if (timestep := getattr(task, "dt", None)) is not None:
        found["control_timestep"] = float(timestep) * env.action_repeat
    if (model := getattr(task, "mj_model", None)) is not None:
        found |= _actuators(model)
    if getattr(task, "pose", None) is not None:
        found |= {"pose": np.asarray(task.pose).tolist(), "action_scale": task.action_scale}
    if commands := getattr(task, "commands", None):
        found["commands"] = {name: [command.low, command.high, command.unit] for name, command in commands.items()}
    return {name: json.dumps(value) for name, value in found.items()}


def _actuators(model: Any) -> dict[str, Any]:
    import mujoco

    of_joint = mujoco.mjtTrn.mjTRN_JOINT  # pyright: ignore[reportAttributeAccessIssue]
    position = mujoco.mjtBias.mjBIAS_AFFINE  # pyright: ignore[reportAttributeAccessIssue]
    is_servo = model.actuator_biastype == position
    return {
        "actuators": [model.actuator(index).name for index in range(model.nu)],
        "joints": [
            model.joint(int(model.actuator_trnid[index, 0])).name if model.actuator_trntype[index] == of_joint else None
            for index in range(model.nu)
        ],
        "control_range": [
            ends.tolist() if is_limited else None
            for ends, is_limited in zip(model.actuator_ctrlrange, model.actuator_ctrllimited, strict=True)
        ],
        "kp": np.where(is_servo, model.actuator_gainprm[:, 0], 0.0).tolist(),
        "kd": np.where(is_servo, -model.actuator_biasprm[:, 2], 0.0).tolist(),
    }
