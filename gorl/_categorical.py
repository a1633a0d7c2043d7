"""Values as categorical distributions over fixed bins."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._errors import InputError
from ._tree import is_traced
from ._types import Real

_STD_IN_BINS = 0.75
_CONFIDENCE = 40.0  # of a fresh critic, in nats, that every value is 0


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


def sure_of_zero(network: eqx.nn.MLP, bins: Bins) -> eqx.nn.MLP:
    """A fresh network of logits, with a bias that makes every value about 0."""
    bias = _CONFIDENCE * bins.project(jnp.zeros(()))
    return eqx.tree_at(lambda network: network.layers[-1].bias, network, bias)


def value_bins(num_bins: int, lowest: Real | None, highest: Real | None, discount: Real, reward_scale: Real) -> Bins:
    """The bins of a critic.

    **Arguments:**

    - `num_bins`: the number of bins.
    - `lowest`, `highest`: the range of values; `None` for the discounted sums of rewards from -0.1 to 1.2, after
        scaling.
    - `discount`: γ.
    - `reward_scale`: multiplies rewards.
    """
    horizon = reward_scale / (1 - discount) if _differs_from_one(discount) else math.inf
    return Bins(-0.1 * horizon if lowest is None else lowest, 1.2 * horizon if highest is None else highest, num_bins)


def check_value_bins(lowest: Real | None, highest: Real | None, discount: Real, reward_scale: Real) -> None:
    """Checks that the range of `value_bins` holds a value. A traced one was checked before.

    **Raises:**

    `gorl.InputError` if it does not, or does not follow from the rewards.
    """
    if any(is_traced(number) for number in (lowest, highest, discount, reward_scale)):
        return
    if (lowest is None or highest is None) and not _differs_from_one(discount):
        raise InputError(
            "with learner.discount = 1 the range of values does not follow from the rewards: give "
            "learner.lowest_value and learner.highest_value."
        )
    bins = value_bins(2, lowest, highest, discount, reward_scale)
    if not np.all(np.asarray(bins.lowest) < np.asarray(bins.highest)):
        raise InputError(
            f"learner.lowest_value = {bins.lowest} is not below learner.highest_value = {bins.highest}: no value lies "
            "between them."
        )


def _differs_from_one(discount: Real) -> bool:
    return is_traced(discount) or not np.any(np.asarray(discount) == 1)
