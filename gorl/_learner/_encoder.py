"""The Gaussian encoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._network import perceptron
from .._statistics import RunningStatistics
from .._types import RandomKey
from ._base import AbstractEncoder

MIN_STD, MAX_STD = 1e-3, 10.0


class GaussianEncoder(AbstractEncoder):
    """A diagonal Gaussian over latents.

    The standard deviation is `clip(softplus(·) + 1e-3, 1e-3, 10)` of the network's second half of outputs.
    """

    network: eqx.nn.MLP
    statistics: RunningStatistics

    @staticmethod
    def init(observation_size: int, latent_size: int, width: int, depth: int, key: RandomKey) -> "GaussianEncoder":
        """An encoder that starts at N(0, I) whatever the observation.

        **Arguments:**

        - `observation_size`, `latent_size`: the lengths of what goes in and comes out.
        - `width`, `depth`: hidden layers.
        - `key`: decides the initial weights.
        """
        network = perceptron(observation_size, 2 * latent_size, width, depth, key=key, output_scale=0.0)
        unit_std = jnp.log(jnp.expm1(1.0 - MIN_STD))  # softplus of this is 1 - MIN_STD
        bias = jnp.concatenate([jnp.zeros(latent_size), jnp.full(latent_size, unit_std)])
        network = eqx.tree_at(lambda mlp: mlp.layers[-1].bias, network, bias)
        return GaussianEncoder(network, RunningStatistics.empty(observation_size))

    def distribution(
        self, observation: Float[Array, " observation"]
    ) -> tuple[Float[Array, " latent"], Float[Array, " latent"]]:
        """The mean and the standard deviation of the latent."""
        mean, raw = jnp.split(self.network(self.statistics.normalise(observation)), 2)
        return mean, jnp.clip(jax.nn.softplus(raw) + MIN_STD, MIN_STD, MAX_STD)

    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " latent"], Float[Array, ""]]:
        """A latent, and its log-probability density."""
        mean, std = self.distribution(observation)
        latent = mean + std * jax.random.normal(key, mean.shape)
        return latent, log_density(latent, mean, std)

    def mode(self, observation: Float[Array, " observation"]) -> Float[Array, " latent"]:
        """The mean."""
        return self.distribution(observation)[0]


def log_density(
    value: Float[Array, "*batch size"], mean: Float[Array, "*batch size"], std: Float[Array, "*batch size"]
) -> Float[Array, "*batch"]:
    """The log-density of a diagonal Gaussian."""
    return jnp.sum(jax.scipy.stats.norm.logpdf(value, mean, std), axis=-1)


def entropy(std: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    """The differential entropy of a diagonal Gaussian, in nats."""
    return jnp.sum(0.5 + 0.5 * jnp.log(2 * jnp.pi) + jnp.log(std), axis=-1)
