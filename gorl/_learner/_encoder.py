"""The Gaussian encoder."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._gaussian import log_density, mean_and_std, standard_outputs
from .._network import mlp
from .._shapes import check_vector
from .._statistics import RunningStatistics
from .._types import RandomKey
from ._base import AbstractEncoder


@final
class GaussianEncoder(AbstractEncoder):
    """A diagonal Gaussian over latents.

    **Arguments:**

    - `network`: outputs mean and standard deviation.
    - `statistics`: running statistics of observations.
    """

    network: eqx.nn.MLP
    statistics: RunningStatistics

    @staticmethod
    def init(
        observation_size: int, latent_size: int, width: int, depth: int, key: RandomKey, *, normalised: bool = False
    ) -> "GaussianEncoder":
        """An encoder that starts at N(0, I) whatever the observation.

        **Arguments:**

        - `observation_size`, `latent_size`: the lengths of observations and latents.
        - `width`, `depth`: hidden layers.
        - `key`: decides the initial weights.
        - `normalised`: whether a layer norm follows each hidden layer.
        """
        network = mlp(observation_size, 2 * latent_size, width, depth, key=key, normalised=normalised)
        return GaussianEncoder(network=network, statistics=RunningStatistics.empty(observation_size)).at_prior()

    def at_prior(self) -> "GaussianEncoder":
        """The same hidden layers under a fresh last layer: N(0, I) whatever the observation."""
        last = self.network.layers[-1]
        fresh = (jnp.zeros_like(last.weight), standard_outputs(last.weight.shape[0] // 2))
        return eqx.tree_at(lambda e: (e.network.layers[-1].weight, e.network.layers[-1].bias), self, fresh)

    def distribution(
        self, observation: Float[Array, " observation"]
    ) -> tuple[Float[Array, " latent"], Float[Array, " latent"]]:
        """The mean and the standard deviation of the latent."""
        return mean_and_std(self.network(self.statistics.normalise_one(observation)))

    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " latent"], Float[Array, ""]]:
        """Samples a latent, and its log-density."""
        mean, std = self.distribution(observation)
        latent = mean + std * jax.random.normal(key, self.noise_shape)
        return latent, log_density(latent, mean, std)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of a latent."""
        return (self.network.layers[-1].weight.shape[-2] // 2,)

    def from_noise(
        self, observation: Float[Array, " observation"], noise: Float[Array, " latent"]
    ) -> Float[Array, " latent"]:
        """`mean + std * noise`."""
        mean, std = self.distribution(observation)
        check_vector("the noise", noise, mean.size)
        return mean + std * noise
