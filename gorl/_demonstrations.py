"""Demonstrations: a decoder that is fitted to what somebody else did, for a run to begin with."""

import dataclasses
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._config import Config
from ._decoder import Identity
from ._env import EpisodicEnv
from ._errors import InputError
from ._policy import Policy, StagedDecoder
from ._prepare import check_key, prepare
from ._regression import Fit, FitCurve, Rows, fit_pairs
from ._statistics import RunningStatistics
from ._tree import is_traced
from ._types import RandomKey

# An action of 1 has no finite inverse of tanh. With 0.9 in place of this, a decoder of CheetahRun returned 385 and not
# 669, of the 725 of its demonstrator.
_LARGEST_ACTION = 0.999
_MIN_BATCHES = 16  # of an epoch


@final
class Demonstrations(eqx.Module):
    """Episodes of somebody who can do a task.

    **Arguments:**

    - `observations`: what was seen before each action, one episode after the other.
    - `actions`: in `[-1, 1]`, as the environment receives them.
    - `episode_lengths`: the number of actions in each episode.
    """

    observations: Float[Array | np.ndarray, "steps observation"]
    actions: Float[Array | np.ndarray, "steps action"]
    episode_lengths: tuple[int, ...] = eqx.field(static=True, converter=lambda lengths: tuple(map(int, lengths)))

    def check(self, observation_size: int, action_size: int) -> None:
        """Checks the data, and that it goes with an environment of these sizes.

        Under `jit` the numbers themselves are not known yet, and only shapes are checked.

        **Raises:**

        `gorl.InputError`
        """
        steps = sum(self.episode_lengths)
        shapes = {"observations": (steps, observation_size), "actions": (steps, action_size)}
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if len(found) != 2 or found[0] != steps:
                raise InputError(
                    f"the {name} have the shape {found}, and the episodes have {steps:,} steps in all: give one row "
                    "for each step."
                )
            if found[1] != shape[1]:
                raise InputError(
                    f"the demonstrations have {name} of size {found[1]}, and those of the environment have size "
                    f"{shape[1]}: give demonstrations of this environment."
                )
        if len(self.episode_lengths) < 2 or min(self.episode_lengths) < 1:
            raise InputError(
                f"the demonstrations have {_episodes(self.episode_lengths)}: give two or more with a step or more "
                "each, as some episodes are held out to decide when to stop."
            )
        if is_traced(self.observations) or is_traced(self.actions):
            return
        for name in shapes:
            unknown = _steps_where(~np.isfinite(np.asarray(getattr(self, name))))
            if unknown.size:
                raise InputError(
                    f"{_of_steps(unknown)} of the demonstrations have {name} that are not finite: leave their episodes "
                    "out."
                )
        beyond = _steps_where(np.abs(np.asarray(self.actions)) > 1)
        if beyond.size:
            largest = float(np.max(np.abs(np.asarray(self.actions))))
            raise InputError(
                f"{_of_steps(beyond)} of the demonstrations have actions outside of [-1, 1], the largest {largest:g}: "
                "divide actions by their limits, or clip them."
            )


def fit_demonstrations(config: Config, demonstrations: Demonstrations, key: RandomKey) -> tuple[Policy, Fit, FitCurve]:
    """Fits a decoder to demonstrations, as a stage of a run fits it to its own best policy.

    **Arguments:**

    - `config`: says which decoder, and of which environment. Its `refinement` is the regression; of the episodes it
        holds out the share `num_validation_episodes / num_episodes`, spread evenly, but at least one. A batch is at
        most a sixteenth of the pairs.
    - `demonstrations`: episodes of the environment.
    - `key`: decides initial weights, order and noise.

    **Returns:**

    A policy with the decoder, whose latents are N(0, I) whatever the observation: `gorl.train(config, key,
    decoder=policy.decoder)` goes on from there. And how the regression went, in the end and epoch by epoch.

    **Raises:**

    `gorl.InputError` if the config has no decoder, for demonstrations that do not go with the environment or cannot be
    fitted, and as `gorl.train` does.
    """
    check_key(key, batch_allowed=False)
    if isinstance(config.decoder, Identity):
        raise InputError(
            f"the config has no decoder to fit ({type(config.learner).__name__} learns actions themselves): choose a "
            "method with one, such as gorl-flow."
        )
    # Of one stage, as the data of a refinement need not go with these episodes.
    config, env = prepare(dataclasses.replace(config, stage_steps=config.stage_steps[:1]))
    demonstrations.check(env.observation_size, env.action_size)
    is_held_out = _held_out(config, demonstrations.episode_lengths)
    order = np.argsort(~is_held_out, kind="stable")  # those that validate come first
    observations, actions = (
        jnp.asarray(leaf, jnp.float32)[order] for leaf in (demonstrations.observations, demonstrations.actions)
    )
    before_tanh = jnp.arctanh(jnp.clip(actions, -_LARGEST_ACTION, _LARGEST_ACTION))
    return _fit(config, env, observations, before_tanh, int(is_held_out.sum()), key)


@eqx.filter_jit
def _fit(
    config: Config,
    env: EpisodicEnv,
    observations: Float[Array, "steps observation"],
    actions: Float[Array, "steps action"],
    num_held_out: int,
    key: RandomKey,
) -> tuple[Policy, Fit, FitCurve]:
    """Fits a decoder to all steps but the first ones, which validate. Actions are those before `tanh`."""
    encoder_key, decoder_key, fit_key = jax.random.split(key, 3)
    num_fitted = len(observations) - num_held_out
    batch_size = min(config.refinement.batch_size, max(1, num_fitted // _MIN_BATCHES))
    decoder, fit, curve = fit_pairs(
        config.decoder.init(RunningStatistics.of(observations), env.action_size, decoder_key),
        (observations, actions, None),
        Rows(num_fitted, lambda number: number + num_held_out),
        Rows(num_held_out, lambda number: number),
        dataclasses.replace(config.refinement, batch_size=batch_size),
        fit_key,
    )
    learner_state = config.learner.init(env.observation_size, env.action_size, encoder_key, env.critic_observation_size)
    staged = StagedDecoder(decoder, jnp.ones((), bool))
    encoder = config.learner.evaluated_encoder(learner_state)
    return Policy(encoder, staged, env.observation_size, env.action_size), fit, curve


def _held_out(config: Config, episode_lengths: tuple[int, ...]) -> Bool[np.ndarray, " steps"]:
    """The steps of the episodes that validate."""
    count = len(episode_lengths)
    share = config.refinement.num_validation_episodes / config.refinement.num_episodes
    num_held_out = min(max(1, round(share * count)), count - 1)
    chosen = ((np.arange(num_held_out) + 0.5) * count / num_held_out).astype(int)
    return np.repeat(np.isin(np.arange(count), chosen), episode_lengths)


def _steps_where(found: Bool[np.ndarray, "steps size"]) -> Int[np.ndarray, " found"]:
    return np.flatnonzero(found.any(axis=1))


def _of_steps(steps: Int[np.ndarray, " found"]) -> str:
    return f"{steps.size:,} step{'s' * (steps.size > 1)} (the first is number {steps[0]:,}, counted from 0)"


def _episodes(lengths: tuple[int, ...]) -> str:
    if len(lengths) < 2:
        return f"{len(lengths)} episode{'s' * (len(lengths) != 1)}"
    return "an episode without a step"
