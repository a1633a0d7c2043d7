"""The identity: the latent is the action. With it, GoRL with PPO is plain Gaussian PPO."""

from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._statistics import RunningStatistics
from .._types import RandomKey
from ._base import AbstractDecoder, AbstractDecoderConfig


@final
class IdentityDecoder(AbstractDecoder):
    """Returns the latent as the action. There is nothing to fit."""

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """`latent`."""
        return latent

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """Zero."""
        return jnp.zeros(())


@final
class Identity(AbstractDecoderConfig):
    """No decoder: latents are actions. For runs of one stage."""

    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> IdentityDecoder:
        return IdentityDecoder()

    def check(self) -> None:
        pass
