"""Flow policy optimisation: a flow policy trained by PPO, with flow-matching losses in place of likelihoods."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._flow import integrate_flow
from .._hyperparameters import float_field, static_field
from .._network import ConditionalField
from .._ode import Integrator
from .._statistics import RunningStatistics
from .._types import RandomKey, Real
from ._base import AbstractEncoder
from ._clipped import AbstractClippedLearner, PolicyTerms
from ._velocity import fresh_velocity

_MAX_LOG_RATIO = 3.0  # where the difference of two losses is clipped before the exponential


class FlowDraws(eqx.Module):
    """The extras of an action: the losses of the flow that sampled it, at samples of noise and time.

    **Attributes:**

    - `noise`, `time`: the samples.
    - `loss`: the flow-matching loss at each.
    """

    noise: Float[Array, "*batch draws latent"]
    time: Float[Array, "*batch draws"]
    loss: Float[Array, "*batch draws"]


@final
class FlowEncoder(AbstractEncoder):
    """A policy that carries noise at time 0 to an action at time 1 along a learned velocity field.

    **Arguments:**

    - `velocity`: the field.
    - `statistics`: running statistics of observations.
    - `latent_size`: the length of actions.
    - `num_steps`: Euler steps.
    - `num_noise_samples`: samples of noise and time for each action.
    """

    velocity: ConditionalField
    statistics: RunningStatistics
    latent_size: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    num_noise_samples: int = eqx.field(static=True)

    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " latent"], FlowDraws]:
        """Samples an action before `tanh`, and its losses."""
        start_key, noise_key, time_key = jax.random.split(key, 3)
        action = self.from_noise(observation, jax.random.normal(start_key, self.noise_shape))
        noise = jax.random.normal(noise_key, (self.num_noise_samples, self.latent_size))
        time = jax.random.randint(time_key, (self.num_noise_samples,), 0, self.num_steps) / self.num_steps
        return action, FlowDraws(noise, time, self.losses(observation, action, noise, time))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of an action."""
        return (self.latent_size,)

    def from_noise(
        self, observation: Float[Array, " observation"], noise: Float[Array, " latent"]
    ) -> Float[Array, " latent"]:
        """The end of the flow that starts at `noise`."""
        normalised = self.statistics.normalise_one(observation)
        return integrate_flow(self.velocity, normalised, noise, Integrator(num_steps=self.num_steps))

    def losses(
        self,
        observation: Float[Array, " observation"],
        action: Float[Array, " latent"],
        noise: Float[Array, "draws latent"],
        time: Float[Array, " draws"],
    ) -> Float[Array, " draws"]:
        """The flow-matching loss at each sample: the mean squared error of the noise that the velocity implies."""
        normalised = self.statistics.normalise_one(observation)

        def loss(noise: Float[Array, " latent"], time: Float[Array, ""]) -> Float[Array, ""]:
            point = (1 - time) * noise + time * action
            implied = point - time * self.velocity(normalised, point, time)
            return jnp.mean((implied - noise) ** 2)

        return jax.vmap(loss)(noise, time)


@final
class FPO(AbstractClippedLearner):
    """Flow policy optimisation, with the values of the GoRL paper's baseline.

    The likelihood ratio of an action is replaced by `exp(old loss - new loss)` of the flow-matching loss at the same
    noise and time. FPO++ is this with one ratio for each draw (`average_losses=False`) and `asymmetric=True`.

    **Arguments:**

    Those of [`AbstractClippedLearner`][], and

    - `num_steps`: Euler steps from noise to action; the loss is taken at their times.
    - `num_noise_samples`: samples of noise and time for each action.
    - `average_losses`: average the losses over the samples before the exponential, as the FPO paper does, for one ratio
        per action. The GoRL paper's baseline has one ratio per draw.
    - `num_frequencies`: frequencies that the time is embedded with.

    ??? cite "Reference"

        McAllister et al. (2025), *Flow Matching Policy Gradients*, arXiv 2507.21053; for FPO++, Yi et al. (2026), *Flow
        Policy Gradients for Robot Control*, arXiv 2602.02481.
    """

    on_actions: bool = eqx.field(static=True, default=True, init=False)
    learning_rate: Real = float_field(3e-4, above=0)
    clip_epsilon: Real = float_field(0.05, above=0)
    num_steps: int = static_field(10)
    num_noise_samples: int = static_field(8)
    average_losses: bool = eqx.field(static=True, default=False)
    num_frequencies: int = static_field(4)

    def fresh_encoder(self, observation_size: int, latent_size: int, key: RandomKey) -> FlowEncoder:
        return FlowEncoder(
            velocity=fresh_velocity(self, observation_size, latent_size, self.num_frequencies, key),
            statistics=RunningStatistics.empty(observation_size),
            latent_size=latent_size,
            num_steps=self.num_steps,
            num_noise_samples=self.num_noise_samples,
        )

    @property
    def encoder_width(self) -> int:
        return self.policy_width * self.num_noise_samples

    def policy_metric_names(self) -> tuple[str, ...]:
        return ("flow_loss",)

    def policy_terms(
        self,
        encoder: AbstractEncoder,
        observation: Float[Array, " observation"],
        latent: Float[Array, " latent"],
        extras: FlowDraws,
    ) -> PolicyTerms:
        assert isinstance(encoder, FlowEncoder)
        loss = encoder.losses(observation, latent, extras.noise, extras.time)
        log_ratio = extras.loss - loss
        if self.average_losses:
            log_ratio = jnp.mean(log_ratio, keepdims=True)
        log_ratio = jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        return PolicyTerms(log_ratio, jnp.zeros(()), {"flow_loss": jnp.mean(loss)})
