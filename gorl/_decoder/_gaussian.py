"""A Gaussian decoder, which shows what stages alone do."""

from typing import final

import equinox as eqx
from jaxtyping import Array, Float

from .._gaussian import log_density, mean_and_std
from .._hyperparameters import static_field
from .._network import mlp
from .._shapes import check_vector
from .._statistics import RunningStatistics
from .._types import RandomKey
from ._base import AbstractDecoder, AbstractDecoderConfig


@final
class GaussianDecoder(AbstractDecoder):
    """Shifts and scales the latent by a mean and a standard deviation that depend on the observation.

    **Arguments:**

    - `network`: outputs both.
    - `statistics`: statistics of the observations that it was fitted to.
    """

    network: eqx.nn.MLP
    statistics: RunningStatistics

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """`mean + std * latent`."""
        mean, std = mean_and_std(self.network(self.statistics.normalise_one(observation)))
        check_vector("the latent", latent, mean.size)
        return mean + std * latent

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The negative log-likelihood of `action` per dimension, whatever the latent."""
        mean, std = mean_and_std(self.network(self.statistics.normalise_one(observation)))
        check_vector("the action", action, mean.size)
        return -log_density(action, mean, std) / action.size


@final
class Gaussian(AbstractDecoderConfig):
    """A Gaussian decoder, fitted by maximum likelihood: the paper's ablation of the generative model.

    **Arguments:**

    - `width`, `depth`: hidden layers of the network.
    """

    width: int = static_field(32)
    depth: int = static_field(4)

    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> GaussianDecoder:
        network = mlp(statistics.mean.shape[0], 2 * action_size, self.width, self.depth, key=key)
        return GaussianDecoder(network, statistics)

    def check(self) -> None:
        pass
