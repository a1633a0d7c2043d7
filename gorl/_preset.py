"""Configs to start from."""

from collections.abc import Mapping
from typing import Any

from ._config import Config
from ._env import EnvConfig
from ._errors import unknown_name
from ._hyperparameters import replace
from ._learner import PPO, SAC
from ._method import Method, find_method

# What the public GoRL code (and MuJoCo Playground's own PPO settings) change for single tasks at the paper's scale, for
# PPO and its relatives.
_PAPER_TASKS: dict[str, dict[str, Any]] = {
    "BallInCup": {"learner.discount": 0.95},
    "FingerSpin": {"learner.discount": 0.95},
    "PendulumSwingup": {"env.action_repeat": 4, "learner.num_epochs": 4},
}

# Minutes on two cores instead of hours on a GPU: small networks and batches, and training episodes that are cut short,
# so that a small budget sees many start states.
_LAPTOP: dict[str, Any] = {
    "env.training_length": 200,
    "refinement.num_draws": 2,
    "refinement.stride": 10,
    "refinement.batch_size": 1024,
    "refinement.num_epochs": 20,
    "refinement.learning_rate": 2e-3,
    "stage_steps": (2_000_000, 2_000_000),
    "evaluation_interval": 250_000,
    "evaluation_episodes": 64,
}

_LAPTOP_CLIPPED: dict[str, Any] = {
    "learner.num_envs": 512,
    "learner.unroll_length": 16,
    "learner.num_unrolls": 1,
    "learner.num_minibatches": 8,
    "learner.num_epochs": 4,
    "learner.policy_width": 64,
    "learner.policy_depth": 2,
    "learner.value_width": 64,
    "learner.value_depth": 2,
    "learner.keep_value": True,
    "learner.learning_rate": 2e-3,
    "learner.discount": 0.97,
}

# With a smaller pull the latents spread far beyond the prior, and a change of decoder costs more of the return.
_LAPTOP_GAUSSIAN: dict[str, Any] = {"learner.entropy_cost": 2e-2, "learner.latent_cost": 1e-2}

_LAPTOP_GAUSSIAN_TASKS: dict[str, dict[str, Any]] = {
    "PointMass": {"learner.latent_cost": 2e-3},  # its goal is small and has to be found: latents may spread further
    # Four times as many gradient steps, each on a quarter of the steps: after two million PPO has 525, not 380. (FPO
    # diverges with them.)
    "CheetahRun": {
        "learner.num_envs": 128,
        "learner.unroll_length": 32,
        "learner.num_minibatches": 16,
        "learner.keep_features": True,
        "learner.entropy_cost": 5e-3,
        "learner.latent_cost": 1.5e-2,
    },
}

# At a constant rate the last million steps take away again what was learned.
_LAPTOP_CLIPPED_TASKS: dict[str, dict[str, Any]] = {"CheetahRun": {"learner.annealing": 0.9}}

_LAPTOP_DECODER: dict[str, Any] = {"decoder.width": 64, "decoder.depth": 2}

_LAPTOP_TASKS: dict[str, dict[str, Any]] = {
    "MultiGoal": {"refinement.stride": 1, "stage_steps": (300_000, 300_000), "evaluation_interval": 50_000},
    "PointMass": {"stage_steps": (800_000, 400_000), "evaluation_interval": 100_000},
    # Its reset takes 200 steps, and its physics ten times as long as PointMass's: few resets, few evaluations. And it
    # takes more of a decoder: with an eighth of the gradient steps a third of the return is lost at its change.
    "CheetahRun": {
        "env.training_length": None,
        "refinement.num_episodes": 256,
        "refinement.stride": 2,
        "refinement.num_epochs": 60,
        "stage_steps": (3_000_000, 2_100_000),
        "evaluation_interval": 500_000,
    },
}

_SCALES = ("laptop", "paper")


def preset(env: Any, scale: str = "laptop", method: str | Method = "gorl-flow") -> Config:
    """A config to start from.

    **Arguments:**

    - `env`: the name of an environment, an `EnvConfig`, or an environment itself.
    - `scale`: `"laptop"` for minutes on two CPU cores, `"paper"` for the schedule and the values of the GoRL paper (on
        a GPU).
    - `method`: the name of a method, see `gorl.methods()`; `"package.module:attribute"` for your own; or a
        `gorl.Method` itself.

    **Raises:**

    `gorl.InputError` for an unknown name.
    """
    if scale not in _SCALES:
        raise unknown_name("scale", scale, _SCALES)
    method = method if isinstance(method, Method) else find_method(method)
    config = Config(env=env)
    changes = (_paper if scale == "paper" else _laptop)(str(config.env), method)
    # What the caller said of the environment goes before what the preset says of it.
    said = {
        f"env.{key}"
        for key in ("training_length", "action_repeat")
        if getattr(config.env, key) != getattr(EnvConfig(), key)
    }
    changes = {key: value for key, value in changes.items() if key not in said}
    if not method.is_staged:
        changes["stage_steps"] = (sum(changes.get("stage_steps", config.stage_steps)),)
    return replace(config, {"learner": method.learner, "decoder": method.decoder, **changes})


def _paper(env: str, method: Method) -> dict[str, Any]:
    task = _PAPER_TASKS.get(env, {})
    task = task if method.is_clipped else {key: value for key, value in task.items() if not key.startswith("learner.")}
    return {**task, **method.paper}


def _laptop(env: str, method: Method) -> dict[str, Any]:
    changes = dict(_LAPTOP)
    if method.is_clipped:
        changes |= _LAPTOP_CLIPPED | _LAPTOP_CLIPPED_TASKS.get(env, {})
    if isinstance(method.learner, PPO):
        changes |= _LAPTOP_GAUSSIAN | _LAPTOP_GAUSSIAN_TASKS.get(env, {})
    if method.is_staged:
        changes |= _LAPTOP_DECODER
    changes |= _LAPTOP_TASKS.get(env, {})
    if isinstance(method.learner, SAC):  # it learns from every step many times, and gets by with fewer of them
        changes["stage_steps"] = tuple(steps // 2 for steps in changes["stage_steps"])
        changes["evaluation_interval"] //= 2
    return {**changes, **method.laptop}


def reschedule(
    config: Config,
    *,
    total_steps: int | None = None,
    num_stages: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """`config` with its stages stretched to another total of steps, or divided into another number of stages.

    **Arguments:**

    - `config`: the config, whose stages say how steps are shared out.
    - `total_steps`: environment steps of all stages together; `None` for as many as now.
    - `num_stages`: how many stages; beyond those of the config, more are shared out like its last.
    - `changes`: what else is to be changed at once, as `gorl.replace` takes it. It goes before what follows from the
        others: an `evaluation_interval` in it stays as it is.

    **Returns:**

    The changed config; evaluations are spread out like the steps.

    **Raises:**

    `gorl.InputError` if a stage would be shorter than an iteration, and as `gorl.replace` does.
    """
    now = sum(config.stage_steps)
    total = now if total_steps is None else total_steps
    count = config.num_stages if num_stages is None else num_stages
    shares = (config.stage_steps + (config.stage_steps[-1],) * count)[: max(count, 0)]
    stages = tuple(total * share // sum(shares) for share in shares)
    interval = max(1, config.evaluation_interval * max(total, 1) // now)
    return replace(config, {"stage_steps": stages, "evaluation_interval": interval, **(changes or {})})
