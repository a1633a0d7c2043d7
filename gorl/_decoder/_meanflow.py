"""MeanFlow: an average velocity fitted to straight paths from noise to actions, sampled in one pass of the network."""

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._hyperparameters import float_field, static_field
from .._network import ConditionalField
from .._shapes import check_vector
from .._statistics import RunningStatistics
from .._trainable import Constant
from .._types import RandomKey, Real
from ._base import AbstractDecoder, AbstractDecoderConfig

_WEIGHT_OFFSET = 1e-3


@final
class MeanFlowDecoder(AbstractDecoder):
    """Maps a latent at time 0 to an action at time 1 by one step along a learned average velocity.

    `u(x, t, r)` is the average, from time `t` to a later time `r`, of the velocity `v` along the path that is at `x` at
    time `t`:

        (r - t) u(x_t, t, r) = ∫ v(x_s, s) ds, from t to r

    So `x_r = x_t + (r - t) u(x_t, t, r)`, and the action is `latent + u(latent, 0, 1)`. The derivative of both sides by
    `t` along the path is

        -u + (r - t) du/dt = -v, so u = v + (r - t) du/dt, with du/dt = v ∂u/∂x + ∂u/∂t

    which is one forward-mode derivative of the network with the tangents `(v, 1, 0)`. The loss is the squared error of
    this identity, with its right side held fixed. The paper has `u = v - (t - r) du/dt`, because its time runs from the
    action to the noise: there the point is at the later of the two times, here at the earlier one.

    **Arguments:**

    - `velocity`: the average velocity, a field of the times `t` and `r - t`.
    - `statistics`: statistics of the observations that it was fitted to.
    - `interval_share`, `weight_power`: as in [`gorl.MeanFlow`][].

    ??? cite "Reference"

        Geng et al. (2025), *Mean Flows for One-step Generative Modeling*, equations (6) to (11) and section 4.3.
    """

    velocity: ConditionalField
    statistics: RunningStatistics
    interval_share: Constant
    weight_power: Constant

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """The end of one step from `latent`, along the average velocity from time 0 to time 1."""
        return latent + self.velocity(self.statistics.normalise_one(observation), latent, jnp.zeros(()), jnp.ones(()))

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The mean squared error of the identity at random times of the straight path from `latent` to `action`.

        Its gradient is weighted by `1 / (squared error + 1e-3) ** weight_power`. Its value is not, as a weighted one
        would hardly tell a good fit from a bad one.
        """
        check_vector("the latent", latent, action.size)
        time, end = self._draw_times(key)
        normalised = self.statistics.normalise_one(observation)

        def average_velocity(point: Float[Array, " action"], time: Float[Array, ""]) -> Float[Array, " action"]:
            return self.velocity(normalised, point, time, end - time)

        point = (1 - time) * latent + time * action
        velocity = action - latent
        predicted, derivative = jax.jvp(average_velocity, (point, time), (velocity, jnp.ones_like(time)))
        target = jax.lax.stop_gradient(velocity + (end - time) * derivative)
        error = jnp.mean((predicted - target) ** 2)
        weighted = error * jax.lax.stop_gradient((error + _WEIGHT_OFFSET) ** -self.weight_power.value)
        return jax.lax.stop_gradient(error - weighted) + weighted

    def validation_loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The energy score `|X - action| - |X - X'| / 2` of two actions `X` and `X'` of the decoder.

        On average the distribution of the data has the lowest. The loss cannot choose an epoch, because its targets
        vary more, the more the field does: that of a fresh network is one of the lowest.

        ??? cite "Reference"

            Gneiting & Raftery (2007), *Strictly Proper Scoring Rules, Prediction, and Estimation*, equation (22).
        """
        one, other = self.decode(observation, latent), self.decode(observation, jax.random.normal(key, latent.shape))
        return jnp.linalg.norm(one - action) - jnp.linalg.norm(one - other) / 2

    def _draw_times(self, key: RandomKey) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The time of the point, and the end of the interval that the velocity is averaged over."""
        times_key, share_key = jax.random.split(key)
        drawn = jax.random.uniform(times_key, (2,))
        time, end = jnp.min(drawn), jnp.max(drawn)
        return time, jnp.where(jax.random.uniform(share_key) < self.interval_share.value, end, time)


@final
class MeanFlow(AbstractDecoderConfig):
    """A MeanFlow decoder: a flow whose sampling is one pass of the network.

    Its samples are less exact than those of ten steps of `gorl.FlowMatching`, and it takes three times as long to fit,
    as its loss differentiates the network. On two modes in two dimensions, fitted for as many epochs, its energy
    distance from the data is twice as large. Times from the paper's logit-normal distribution, or weights of power 1 as
    in the paper, gave distances three to ten times larger than the values here.

    **Arguments:**

    - `width`, `depth`: hidden layers of the network.
    - `num_frequencies`: frequencies that each of the two times is embedded with.
    - `interval_share`: the share of pairs that the average over an interval is fitted on. On the others the interval is
        empty, and the loss is that of flow matching.
    - `weight_power`: pairs whose squared error is large weigh less in the gradient, by this power of it; 0 for equal
        weights.
    """

    width: int = static_field(32)
    depth: int = static_field(4)
    num_frequencies: int = static_field(4)
    interval_share: Real = float_field(0.5, above=0, at_most=1)
    weight_power: Real = float_field(0.5, at_least=0)

    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> MeanFlowDecoder:
        """A decoder that is the identity map until it is fitted: its velocity starts close to zero."""
        velocity = ConditionalField.init(
            statistics.mean.shape[0],
            action_size,
            self.width,
            self.depth,
            self.num_frequencies,
            key=key,
            initial_scale=0.01,
            num_times=2,
        )
        constants = (Constant(jnp.asarray(value, jnp.float32)) for value in (self.interval_share, self.weight_power))
        return MeanFlowDecoder(velocity, statistics, *constants)

    def check(self) -> None:
        pass
