"""Values as categorical distributions over fixed bins."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._types import Real

_STD_IN_BINS = 0.75


class Bins(eqx.Module):
    """Bins of equal width from a lowest to a highest value.

    **Arguments:**

    - `lowest`, `highest`: the centres of the first and the last bin.
    - `num_bins`: the number of bins.

    ??? cite "Reference"

        Farebrother et al. (2024), *Stop Regressing: Training Value Functions via Classification for Scalable Deep RL*,
        section 3.1, and its standard deviation of three quarters of a bin.
    """

    lowest: Real
    highest: Real
    num_bins: int = eqx.field(static=True)

    @property
    def width(self) -> Real:
        """The distance between the centres of two bins."""
        return (self.highest - self.lowest) / (self.num_bins - 1)

    @property
    def centres(self) -> Float[Array, " bins"]:
        """The centre of each bin."""
        return jnp.asarray(self.lowest + self.width * np.arange(self.num_bins, dtype=np.float32))

    def clip(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """The nearest value within the range of the bins."""
        return jnp.clip(value, self.lowest, self.highest)

    def project(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch bins"]:
        """Projects a value to probabilities of the bins: those of a Gaussian around it (HL-Gauss), renormalised."""
        edges = self.lowest + self.width * (np.arange(self.num_bins + 1, dtype=np.float32) - 0.5)
        edges = jnp.expand_dims(edges, tuple(range(jnp.ndim(value))))
        below = jax.scipy.stats.norm.cdf(edges, self.clip(value)[..., None], _STD_IN_BINS * self.width)
        mass = below[..., 1:] - below[..., :-1]
        return mass / jnp.sum(mass, axis=-1, keepdims=True)

    def mean(self, logits: Float[Array, "*batch bins"]) -> Float[Array, "*batch"]:
        """The mean of the distribution with these logits."""
        return jax.nn.softmax(logits) @ self.centres
