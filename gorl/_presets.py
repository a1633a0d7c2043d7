"""Configs to start from: every number of every preset."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ._config import Config
from ._decoder import AbstractDecoderConfig, Diffusion, FlowMatching, Gaussian, MeanFlow
from ._env import EnvConfig, environments, is_robot, is_suite
from ._errors import unknown_name
from ._hyperparameters import replace
from ._learner import PPO, REPPO, SAC, AbstractClippedLearner, AbstractLearner
from ._method import Method, find_method


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Fields that a preset changes, and where: in the runs that meet every condition that is given."""

    changes: dict[str, Any]
    task: str | None = None
    is_own: bool | None = None  # a task of the user's
    is_robot: bool | None = None  # one of MuJoCo Playground's
    is_suite: bool | None = None  # one of DeepMind's control suite
    learner: type[AbstractLearner] | None = None
    methods: tuple[str, ...] | None = None
    has_decoder: bool | None = None
    decoder: type[AbstractDecoderConfig] | tuple[type[AbstractDecoderConfig], ...] | None = None

    def holds(self, task: str, method: Method) -> bool:
        return (
            (self.task is None or self.task == task)
            and (self.is_own is None or self.is_own == (task not in environments()))
            and (self.is_robot is None or self.is_robot == is_robot(task))
            and (self.is_suite is None or self.is_suite == is_suite(task))
            and (self.learner is None or isinstance(method.learner, self.learner))
            and (self.decoder is None or isinstance(method.decoder, self.decoder))
            and (self.methods is None or method.name in self.methods)
            and (self.has_decoder is None or self.has_decoder == method.has_decoder)
        )


# How long MuJoCo Playground's robots hold an action, where it is longer than a control step.
_ROBOTS = (
    _Rule({"env.action_repeat": 2}, task="AlohaSinglePegInsertion"),
    _Rule({"env.action_repeat": 4}, task="PandaRobotiqPushCube"),
)

# What the GoRL paper changes for single tasks and methods: the other values are the defaults of each class. (MuJoCo
# Playground's own PPO has the same exceptions.) A later rule goes before an earlier one.
_PAPER = (
    _Rule({"learner.discount": 0.95}, task="BallInCup", learner=AbstractClippedLearner),
    _Rule({"learner.discount": 0.95}, task="FingerSpin", learner=AbstractClippedLearner),
    _Rule({"env.action_repeat": 4}, task="PendulumSwingup"),
    _Rule({"learner.num_epochs": 4}, task="PendulumSwingup", learner=AbstractClippedLearner),
    # MuJoCo Playground's own values for PPO with Go1, but for the shape of the networks and for the clip, which is
    # Brax's default of 0.3 there. With these, one seed walks after 100M steps.
    _Rule(
        {
            "env.staggered": True,
            "learner.num_envs": 8192,
            "learner.unroll_length": 20,
            "learner.num_unrolls": 1,
            "learner.num_epochs": 4,
            "learner.policy_width": 256,
            "learner.policy_depth": 3,
            "learner.value_width": 256,
            "learner.value_depth": 3,
            "learner.learning_rate": 3e-4,
            "learner.discount": 0.97,
            "learner.reward_scale": 1.0,
            "stage_steps": (100_000_000, 100_000_000),
            "evaluation_interval": 20_000_000,
        },
        is_robot=True,
        learner=AbstractClippedLearner,
    ),
    # SAC learns from every step many times, and needs fewer of them.
    _Rule({"stage_steps": (2_000_000, 1_000_000, 1_000_000), "evaluation_interval": 100_000}, learner=SAC),
)

# A refinement on more data, for longer.
_THOROUGH = {"refinement.num_episodes": 256, "refinement.stride": 2, "refinement.num_epochs": 60}

# Minutes on two cores instead of hours on a GPU: small networks and batches. A later rule goes before an earlier one,
# so they stand from the general to the special.
_LAPTOP = (
    _Rule(
        {
            "env.training_length": 200,  # a small budget sees many start states
            "refinement.num_noise_samples": 2,
            "refinement.stride": 10,
            "refinement.batch_size": 1024,
            "refinement.num_epochs": 20,
            "refinement.learning_rate": 2e-3,
            "stage_steps": (2_000_000, 2_000_000),
            "evaluation_interval": 250_000,
            "evaluation_episodes": 64,
        }
    ),
    _Rule({"decoder.width": 64, "decoder.depth": 2}, decoder=(FlowMatching, Diffusion, MeanFlow, Gaussian)),
    # How long.
    _Rule({"refinement.stride": 1, "stage_steps": (300_000, 300_000), "evaluation_interval": 50_000}, task="MultiGoal"),
    _Rule({"stage_steps": (800_000, 400_000), "evaluation_interval": 100_000}, task="PointMass"),
    # It takes more of a decoder: with an eighth of the gradient steps a third of the return is lost at its change.
    _Rule(
        {
            "env.training_length": None,
            **_THOROUGH,
            "stage_steps": (3_000_000, 2_100_000),
            "evaluation_interval": 500_000,
        },
        task="CheetahRun",
    ),
    # SAC learns from every step many times, and needs fewer of them.
    _Rule({"stage_steps": (800_000, 400_000), "evaluation_interval": 100_000}, learner=SAC),
    _Rule({"stage_steps": (150_000, 150_000), "evaluation_interval": 25_000}, task="MultiGoal", learner=SAC),
    _Rule({"stage_steps": (400_000, 200_000), "evaluation_interval": 50_000}, task="PointMass", learner=SAC),
    _Rule({"stage_steps": (1_500_000, 1_050_000), "evaluation_interval": 250_000}, task="CheetahRun", learner=SAC),
    # PPO and its relatives.
    _Rule(
        {
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
        },
        learner=AbstractClippedLearner,
    ),
    # At a constant rate the last million steps take away again what was learned.
    _Rule({"learner.learning_rate_decay": 0.9}, task="CheetahRun", learner=AbstractClippedLearner),
    # With a smaller pull the latents spread far beyond the prior, and a change of decoder costs more of the return.
    _Rule({"learner.entropy_coefficient": 2e-2, "learner.latent_coefficient": 1e-2}, learner=PPO),
    # Its goal is small and has to be found: latents may spread further.
    _Rule({"learner.latent_coefficient": 2e-3}, task="PointMass", learner=PPO),
    # Four times as many gradient steps, each on a quarter of the steps: after two million PPO has 525, not 380. (FPO
    # diverges with them.)
    _Rule(
        {
            "learner.num_envs": 128,
            "learner.unroll_length": 32,
            "learner.num_minibatches": 16,
            "learner.keep_features": True,
            "learner.entropy_coefficient": 5e-3,
            "learner.latent_coefficient": 1.5e-2,
        },
        task="CheetahRun",
        learner=PPO,
    ),
    # After tanh, less entropy goes as far; with more, one seed in three never finds the goal of PointMass.
    _Rule({"learner.entropy_coefficient": 5e-3, "learner.latent_coefficient": 0.0}, methods=("ppo",)),
    # One seed each, twenty million steps: `ppo` has 788 after ten million and 924 at the end; `gorl-flow` falls from
    # 578 to 311 at its change of decoder, and ends at 676.
    _Rule(
        {
            "env.training_length": None,
            "env.staggered": True,
            "learner.unroll_length": 32,
            "learner.num_minibatches": 16,
            "learner.num_epochs": 6,
            "learner.policy_depth": 3,
            "learner.value_width": 128,
            "learner.value_depth": 3,
            "learner.learning_rate": 1e-3,
            "learner.learning_rate_decay": 0.9,
            "learner.discount": 0.99,
            "learner.keep_features": True,
            "learner.entropy_coefficient": 5e-3,
            "learner.latent_coefficient": 1.5e-2,
            **_THOROUGH,
            "stage_steps": (14_000_000, 6_000_000),
            "evaluation_interval": 2_000_000,
        },
        task="FingerTurnHard",
        learner=PPO,
    ),
    _Rule(
        {"learner.entropy_coefficient": 1e-2, "learner.latent_coefficient": 0.0},
        task="FingerTurnHard",
        methods=("ppo",),
    ),
    # The quadruped of the guide on robots, one seed: it walks as it is told after eight million steps. Networks twice
    # as wide, at a rate of 7e-4, were behind after two.
    _Rule(
        {
            "env.training_length": None,
            "env.staggered": True,
            "learner.unroll_length": 24,
            "learner.reward_scale": 1.0,
            "learner.learning_rate": 1e-3,
            "learner.learning_rate_decay": 0.9,
            "learner.entropy_coefficient": 2e-3,
            "learner.keep_features": True,
            **_THOROUGH,
            "stage_steps": (6_000_000, 4_000_000),
            "evaluation_interval": 1_000_000,
        },
        is_own=True,
        learner=PPO,
    ),
    _Rule({"learner.learning_rate": 1e-3}, methods=("fpo", "fpo++")),
    _Rule({"learner.learning_rate": 1e-2, "learner.step_std": 0.1}, methods=("dppo",)),
    # HopperStand, one seed each: 906 after 0.8 million steps, in 9 minutes on one core. With the smaller of the critics
    # 487 after 0.7 million. With actions held for one control step, nothing is learned in the first 0.3 million.
    _Rule(
        {
            "env.training_length": None,
            "env.staggered": True,
            "learner.num_envs": 64,
            "learner.unroll_length": 16,
            "learner.updates_per_step": 32,
            "learner.batch_size": 128,
            "learner.buffer_size": 500_000,
            "learner.policy_width": 128,
            "learner.value_width": 128,
            "learner.value_norm": True,
            "learner.pessimistic": False,
            "learner.bootstrap_steps": 3,
            "learner.learning_rate": 5e-4,
            "learner.learning_rate_decay": 0.9,
            "learner.tau": 0.01,
            "learner.average_decay": 0.95,
            "learner.initial_temperature": 0.03,
            "learner.target_divergence": 1.19,  # on actions, an entropy of -0.5 per dimension
        },
        learner=SAC,
    ),
    # Rewards lie between 0 and 1 there, and are summed while an action is held. The bins end at 60. Good episodes are
    # worth more: on HopperStand 0.4 of the last targets are cut, and returns fall at the end, perhaps for that. A wider
    # range has not been tried.
    _Rule({"env.action_repeat": 2, "learner.reward_scale": 0.5, "learner.num_bins": 101}, learner=SAC, is_suite=True),
    _Rule({"learner.updates_per_step": 8}, task="MultiGoal", learner=SAC),
    # One seed each: 770 after 0.2 million steps, 899 after 0.4 million. With the mean of both critics, which value too
    # highly what was never tried, 135 after 0.2 million.
    _Rule({"learner.pessimistic": True}, task="PointMass", learner=SAC),
    _Rule(
        {
            "learner.target_divergence": 2.0,
            "learner.encoder_starts": 16_384,
            **_THOROUGH,
        },
        learner=SAC,
        has_decoder=True,
    ),
    # CheetahRun, one seed each: 546 after 1.25 million steps; with a layer norm in the critic as well 338. Without any
    # norm 583 after two million; then with eight epochs 501, and with the duals at 1e-3 426. Aiming at less entropy (a
    # divergence of 1.69) learns faster up to 1.5 million steps and ends lower: 678 for 733, three seeds each.
    _Rule(
        {
            "env.training_length": None,
            "env.staggered": True,
            "learner.num_envs": 256,
            "learner.unroll_length": 32,
            "learner.num_minibatches": 16,
            "learner.num_epochs": 4,
            "learner.value_norm": False,
            "learner.policy_width": 128,
            "learner.value_width": 128,
            "learner.num_bins": 101,
            "learner.learning_rate": 5e-4,
            "learner.dual_learning_rate": 5e-4,
            **_THOROUGH,
            "stage_steps": (3_000_000, 2_000_000),
            "evaluation_interval": 500_000,
        },
        learner=REPPO,
    ),
    # CheetahRun, the second stage, three seeds (mean return as it begins, and after 0.25, 0.5 and 1.25 million steps):
    # 613, 572, 641, 714. Without the critic of the first stage, and without the wait: 613, 300, 417, 616. The wait
    # alone ends at 610, the critic alone at 668, and the encoder's hidden layers with a wait at 493.
    _Rule({"learner.keep_critic": True, "learner.encoder_starts": 150_000}, learner=REPPO, has_decoder=True),
    _Rule({"stage_steps": (3_000_000, 2_100_000)}, task="CheetahRun", learner=REPPO),
)

_SCALES = {"laptop": _ROBOTS + _LAPTOP, "paper": _ROBOTS + _PAPER}


def preset(env: Any, scale: str = "laptop", method: str | Method = "gorl-flow") -> Config:
    """A config to start from.

    **Arguments:**

    - `env`: the name of an environment, an `EnvConfig`, or an environment itself. What an `EnvConfig` says of the
        length of episodes and of the action repeat stays.
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
    changes: dict[str, Any] = {}
    for rule in _SCALES[scale]:
        if rule.holds(str(config.env), method):
            changes |= rule.changes
    changes |= method.changes(scale)
    said = {
        f"env.{name}"
        for name in ("training_length", "action_repeat")
        if getattr(config.env, name) != getattr(EnvConfig(config.env.name), name)
    }
    changes = {name: value for name, value in changes.items() if name not in said}
    if not method.is_staged:
        changes["stage_steps"] = (sum(changes.get("stage_steps", config.stage_steps)),)
    made = {"learner": method.learner, "decoder": method.decoder, "starts_fitted": method.frozen}
    return replace(config, {**made, **changes})


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
