"""The configuration of a run, as pure data."""

import json
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp

from ._decoder import AbstractDecoderConfig, FlowMatching, Identity
from ._env import EnvConfig, check_options
from ._errors import InputError
from ._hyperparameters import Group, check_ranges, float_field, from_dict, load_json, static_field, to_dict
from ._learner import PPO, AbstractLearner
from ._regression import Refinement
from ._types import Real


def _env_config(env: Any) -> EnvConfig:
    return env if isinstance(env, EnvConfig) else EnvConfig(env)


@final
class Config(eqx.Module):
    """The configuration of a run: everything that decides it, except its random key.

    It prints, compares and goes through JSON exactly. Numbers that decide no shape are pytree leaves, so a batch of
    them can be trained in one `vmap`; the others are static. It is changed by
    `gorl.replace(config, {"learner.clip_epsilon": 0.1})`.

    **Arguments:**

    - `env`: the environment: an `EnvConfig`, a name, or an environment itself.
    - `learner`: trains the encoder.
    - `decoder`: turns latents into actions.
    - `refinement`: the regression of the decoder between stages.
    - `stage_steps`: environment steps of each stage, rounded to whole iterations of the learner.
    - `stage_patience`: a stage ends early after this many evaluations without a rise, and the rest of its steps is left
        out; `None` for never. The mean over all seeds that train side by side decides.
    - `stage_margin`: the share of the best return of the stage by which a return has to be above it to be a rise.
    - `evaluation_interval`: environment steps between evaluations, rounded to whole iterations; every stage is also
        evaluated when it begins and when it ends.
    - `evaluation_episodes`: episodes in an evaluation.
    - `starts_fitted`: whether the first stage already acts through a decoder, which `gorl.train` and `gorl.iterate` are
        given, in place of the identity.
    - `extra_evaluations`: environment steps since the run began at which it is evaluated as well, rounded to whole
        iterations. `gorl.lengthen` sets it.

    **Raises:**

    `gorl.InputError` for a value that is out of range, or that does not go with another.
    """

    env: EnvConfig = eqx.field(converter=_env_config)
    learner: AbstractLearner = PPO()
    decoder: AbstractDecoderConfig = FlowMatching()
    refinement: Refinement = Refinement()
    stage_steps: tuple[int, ...] = static_field((60_000_000, 60_000_000, 30_000_000, 30_000_000))
    stage_patience: int | None = static_field(None)
    stage_margin: Real = float_field(0.01, at_least=0)
    evaluation_interval: int = static_field(6_000_000)
    evaluation_episodes: int = static_field(128)
    starts_fitted: bool = eqx.field(static=True, default=False)
    extra_evaluations: tuple[int, ...] = static_field(())

    def __check_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Checks every value without loading the environment; called whenever a config is made.

        **Raises:**

        `gorl.InputError`
        """
        check_ranges(self)
        check_options(self.env)
        self.learner.check()
        self.decoder.check()
        if not self.stage_steps:
            raise InputError("stage_steps is empty: give the environment steps of at least one stage.")
        for steps in self.stage_steps:
            if steps < self.steps_per_iteration:
                raise InputError(
                    f"a stage of {steps:,} steps is shorter than one iteration, which takes "
                    f"{self.steps_per_iteration:,}: give more steps, fewer stages, or a smaller iteration "
                    "(learner.num_envs, learner.num_unrolls)."
                )
        if self.learner.on_actions and not isinstance(self.decoder, Identity):
            learner, decoder = type(self.learner).__name__, type(self.decoder).__name__
            raise InputError(
                f"{learner} learns actions themselves here, and takes no {decoder} decoder: set decoder to "
                "gorl.Identity(), or choose a learner of latents."
            )
        if self.num_stages > 1 and isinstance(self.decoder, Identity):
            raise InputError("the identity decoder cannot be refined: give it one stage, or another decoder.")
        if self.starts_fitted and isinstance(self.decoder, Identity):
            raise InputError("starts_fitted is true, and the identity decoder cannot be fitted: set another decoder.")

    @property
    def num_stages(self) -> int:
        return len(self.stage_steps)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps in one iteration of the learner."""
        return self.learner.steps_per_update * self.env.action_repeat

    @property
    def stage_iterations(self) -> tuple[int, ...]:
        """Iterations of the learner in each stage."""
        return tuple(round(steps / self.steps_per_iteration) for steps in self.stage_steps)

    @property
    def iterations_per_evaluation(self) -> int:
        """Iterations of the learner between two evaluations."""
        return max(1, round(self.evaluation_interval / self.steps_per_iteration))

    @property
    def extra_iterations(self) -> tuple[int, ...]:
        """Iterations of the learner since the run began after which there is an extra evaluation."""
        return tuple(round(steps / self.steps_per_iteration) for steps in self.extra_evaluations)

    def to_json(self) -> str:
        """The config as JSON, from which `from_json` makes an equal one.

        **Raises:**

        `gorl.InputError` if a value is a batch, or the environment is an object without a name.
        """
        return json.dumps(to_dict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """The config that `to_json` wrote; fields that the text leaves out have their defaults.

        **Raises:**

        `gorl.InputError` for a text that is no JSON, an unknown field (with the nearest names), or a bad value.
        """
        return from_dict(Config, load_json(text))


def as_arrays(config: Group) -> Group:
    """A config, or a group of hyperparameters, with arrays as leaves, so that all values share the compiled code."""

    def array(leaf: Any) -> jax.Array:
        is_integer = jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        return jnp.asarray(leaf, jnp.int32 if is_integer else jnp.float32)

    return jax.tree.map(array, config)
