"""Running mean and variance of observations."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._errors import InputError
from ._shapes import check_vector


class RunningStatistics(eqx.Module):
    """Running mean and variance of vectors, merged batch by batch.

    **Attributes:**

    - `count`: of the vectors.
    - `mean`, `variance`: of each coordinate.

    ??? cite "Reference"

        Chan, Golub & LeVeque (1983), *Algorithms for Computing the Sample Variance*, equations (2.1): the merge keeps
        quantities of order one instead of growing sums, so that float32 stays accurate however long a run is.
    """

    count: Float[Array, ""]
    mean: Float[Array, " size"]
    variance: Float[Array, " size"]

    @staticmethod
    def empty(size: int) -> "RunningStatistics":
        """Statistics of no vectors, which normalise to the same vector.

        **Arguments:**

        - `size`: the length of the vectors.
        """
        return RunningStatistics(jnp.zeros(()), jnp.zeros(size), jnp.ones(size))

    @staticmethod
    def of(batch: Float[Array, "*batch size"]) -> "RunningStatistics":
        """Statistics of one batch of vectors."""
        return RunningStatistics.empty(batch.shape[-1]).update(batch)

    def update(self, batch: Float[Array, "*batch size"]) -> "RunningStatistics":
        """The statistics of everything seen before together with `batch`."""
        self._check(batch)
        batch = batch.reshape(-1, batch.shape[-1])
        batch_mean = jnp.mean(batch, axis=0)
        batch_variance = jnp.var(batch, axis=0)
        count = self.count + batch.shape[0]
        weight = batch.shape[0] / count
        difference = batch_mean - self.mean
        mean = self.mean + weight * difference
        variance = (1 - weight) * self.variance + weight * batch_variance + weight * (1 - weight) * difference**2
        return RunningStatistics(count, mean, variance)

    def normalise(self, vector: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """`vector` shifted and scaled to zero mean and unit variance.

        A standard deviation below 1e-3 counts as 1e-3, so a coordinate that has hardly moved is not blown up.
        """
        self._check(vector)
        in_front = tuple(range(vector.ndim - 1))
        std = jnp.maximum(jnp.sqrt(self.variance), 1e-3)
        return (vector - jnp.expand_dims(self.mean, in_front)) / jnp.expand_dims(std, in_front)

    def normalise_one(self, observation: Float[Array, " size"]) -> Float[Array, " size"]:
        """[`normalise`][] of exactly one vector: networks return wrong numbers for several."""
        check_vector("the observation", observation, self.mean.shape[-1])
        return self.normalise(observation)

    def _check(self, vector: Float[Array, "*batch size"]) -> None:
        """Checks the length of vectors, which broadcasting would not."""
        if jnp.shape(vector)[-1:] != self.mean.shape:
            raise InputError(
                f"an array of shape {jnp.shape(vector)} does not go with statistics of vectors of shape "
                f"{self.mean.shape}: give observations of that length, and the statistics of one seed (gorl.of_seed)."
            )
