"""Methods by name: which learner goes with which decoder, and what each scale changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ._decoder import AbstractDecoderConfig, Diffusion, FlowMatching, Identity
from ._errors import InputError
from ._imported import imported, not_found
from ._learner import DPPO, FPO, PPO, REPPO, SAC, AbstractClippedLearner, AbstractLearner


@dataclasses.dataclass(frozen=True)
class Method:
    """A method that can be asked for by name.

    **Arguments:**

    - `name`: the name.
    - `summary`: what it is, in one line.
    - `learner`: how it learns, at the paper's scale.
    - `decoder`: what turns its latents into actions, at the paper's scale; with the identity it has one stage.
    - `paper`, `laptop`: what else each scale changes in a config, by dotted name.
    """

    name: str
    summary: str
    learner: AbstractLearner
    decoder: AbstractDecoderConfig = Identity()
    paper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    laptop: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_staged(self) -> bool:
        """Whether it has stages, between which a decoder is refined."""
        return not isinstance(self.decoder, Identity)

    @property
    def is_clipped(self) -> bool:
        """Whether it is one of PPO's relatives."""
        return isinstance(self.learner, AbstractClippedLearner)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Makes a method known by its name.

    **Raises:**

    `gorl.InputError` if the name is taken.
    """
    if method.name in _METHODS:
        raise InputError(f"there is a method called {method.name!r} already: choose another name.")
    _METHODS[method.name] = method
    return method


def methods() -> dict[str, Method]:
    """Every method that is known, by name."""
    return dict(_METHODS)


def find_method(name: str) -> Method:
    """The method of a name, or the one at `"package.module:attribute"`.

    **Raises:**

    `gorl.InputError` if there is none.
    """
    if name in _METHODS:
        return _METHODS[name]
    if ":" not in name:
        raise not_found("method", name, _METHODS)
    found = imported("method", name)
    if not isinstance(found, Method):
        raise InputError(f"{name!r} is no gorl.Method: give the name of one.")
    return found


# SAC learns from every step many times, and so gets by with fewer of them.
_SAC_STAGES = {"stage_steps": (2_000_000, 1_000_000, 1_000_000), "evaluation_interval": 100_000}
_SAC_LAPTOP = {
    "learner.unroll_length": 16,
    "learner.updates_per_step": 8,
    "learner.buffer_size": 300_000,
    "learner.policy_width": 64,
    "learner.value_width": 64,
    "learner.learning_rate": 1e-3,
    "learner.discount": 0.97,
    "learner.smoothing": 0.02,  # with 0.005 values take most of the gradient steps there are to travel along an episode
    "learner.initial_temperature": 0.03,
}
_SAC_LATENTS_LAPTOP = {
    "learner.target_divergence": 2.0,
    "learner.encoder_starts": 30_000,
    # Its policies are narrow: in a fifth of the gradient steps a decoder loses three quarters of ReacherEasy's return.
    "refinement.num_epochs": 100,
}
# After tanh, less entropy goes as far; with more, one seed in three never finds the goal of PointMass.
_PPO_LAPTOP = {"learner.entropy_cost": 5e-3, "learner.latent_cost": 0.0}
_FLOW_POLICY_LAPTOP = {"learner.learning_rate": 1e-3}

_REPPO_LAPTOP = {
    "learner.num_envs": 256,
    "learner.unroll_length": 32,
    "learner.num_minibatches": 16,
    "learner.num_epochs": 4,
    "learner.policy_width": 128,
    "learner.value_width": 128,
    "learner.num_bins": 101,
    "learner.learning_rate": 5e-4,
    "learner.dual_learning_rate": 5e-4,
}

register(Method("gorl-flow", "PPO on the latents of a flow-matching decoder", PPO(), FlowMatching()))
register(Method("gorl-diffusion", "PPO on the latents of a diffusion decoder", PPO(), Diffusion()))
register(
    Method(
        "gorl-sac",
        "SAC on the latents of a diffusion decoder",
        SAC(),
        Diffusion(),
        _SAC_STAGES,
        {**_SAC_LAPTOP, **_SAC_LATENTS_LAPTOP},
    )
)
register(
    Method(
        "gorl-reppo", "REPPO on the latents of a flow-matching decoder", REPPO(), FlowMatching(), laptop=_REPPO_LAPTOP
    )
)
register(Method("ppo", "PPO of a Gaussian policy", PPO(on_actions=True), laptop=_PPO_LAPTOP))
register(Method("fpo", "Flow policy optimisation: PPO of a flow policy", FPO(), laptop=_FLOW_POLICY_LAPTOP))
register(
    Method(
        "fpo++",
        "FPO with an asymmetric trust region",
        FPO(asymmetric=True),
        laptop=_FLOW_POLICY_LAPTOP,
    )
)
register(
    Method(
        "dppo",
        "Diffusion policy policy optimisation: PPO of every denoising step",
        DPPO(),
        laptop={"learner.learning_rate": 1e-2, "learner.step_std": 0.1},
    )
)
register(
    Method(
        "sac",
        "SAC of a Gaussian policy",
        SAC(on_actions=True, target_divergence=1.69),
        Identity(),
        _SAC_STAGES,
        _SAC_LAPTOP,
    )
)
register(
    Method(
        "reppo",
        "REPPO of a Gaussian policy",
        REPPO(on_actions=True, target_divergence=1.19),
        laptop=_REPPO_LAPTOP,
    )
)
