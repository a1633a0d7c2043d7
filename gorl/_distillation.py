"""Distillation: a decoder that takes fewer passes of a network, fitted to what a policy's own decoder does."""

import dataclasses
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._config import as_arrays
from ._decoder import AbstractDecoder, AbstractDecoderConfig
from ._env import EnvConfig, Environment, EpisodicEnv
from ._errors import InputError
from ._evaluation import load_for
from ._hyperparameters import check_ranges
from ._policy import Policy, StagedDecoder
from ._prepare import check_key
from ._regression import Fit, Refinement, fit_decoder
from ._rollout import collect_dataset
from ._statistics import RunningStatistics
from ._types import RandomKey

_UNROLL_LENGTH = 100  # steps of all episodes that are in memory at once


@final
class _Imitating(AbstractDecoder):
    """A decoder whose loss is the squared distance of its action from the one that the same latent is to give."""

    decoder: AbstractDecoder

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        return self.decoder.decode(observation, latent)

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        return jnp.mean((self.decode(observation, latent) - action) ** 2)


def distill(
    env: EnvConfig | Environment | str,
    policy: Policy,
    decoder: AbstractDecoderConfig,
    key: RandomKey,
    refinement: Refinement = Refinement(),
) -> tuple[Policy, Fit]:
    """Gives a policy another decoder that does the same with fewer passes, such as `gorl.MeanFlow()` with one.

    The policy acts in fresh episodes. Its decoder is deterministic, so for every observation and latent there is one
    right action, and plain regression finds it. The loss is the mean squared error of the action before `tanh`.

    **Arguments:**

    - `env`: the environment that the policy was trained on: `config.env`, a name, or an environment itself.
    - `policy`: a policy with a decoder that has been fitted.
    - `decoder`: the new kind.
    - `key`: decides episodes, initial weights and the order of the regression.
    - `refinement`: its episodes and its regression. `num_noise_samples` and `own_latents` mean nothing here, as each
        action has the latent that it was made from.

    **Returns:**

    The policy with the new decoder, and how the regression went.

    **Raises:**

    `gorl.InputError` if the policy has no fitted decoder or was made for another environment, or as `gorl.train` does.
    """
    loaded = load_for(env, policy)
    check_key(key, batch_allowed=False)
    staged = policy.decoder
    if not isinstance(staged, StagedDecoder) or not bool(staged.fitted):
        raise InputError("this policy has no decoder that was fitted, so there is nothing to distill.")
    check_ranges(decoder, "decoder.")
    decoder.check()
    check_ranges(refinement, "refinement.")
    refinement.check(loaded.num_steps)
    # Another latent than its own would not have made the action.
    refinement = dataclasses.replace(refinement, num_noise_samples=1)
    return _distill(loaded, policy, as_arrays(decoder), as_arrays(refinement), key)


@eqx.filter_jit
def _distill(
    env: EpisodicEnv, policy: Policy, decoder: AbstractDecoderConfig, refinement: Refinement, key: RandomKey
) -> tuple[Policy, Fit]:
    data_key, decoder_key, fit_key = jax.random.split(key, 3)
    observations, actions, latents = collect_dataset(
        env, policy, refinement.num_episodes, refinement.stride, _UNROLL_LENGTH, data_key
    )
    fresh = decoder.init(RunningStatistics.of(observations), policy.action_size, decoder_key)
    fitted, fit = fit_decoder(_Imitating(fresh), observations, actions, refinement, fit_key, latents)
    assert isinstance(fitted, _Imitating)
    staged = StagedDecoder(fitted.decoder, jnp.ones((), bool))
    return Policy(policy.encoder, staged, policy.observation_size, policy.action_size), fit
