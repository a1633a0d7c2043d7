"""Diffusion policy policy optimisation: the chain from noise to action as a decision process of its own."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._gaussian import log_density
from .._hyperparameters import float_field, static_field
from .._network import ConditionalField
from .._statistics import RunningStatistics
from .._trainable import Constant
from .._types import RandomKey, Real
from ._base import AbstractEncoder
from ._clipped import AbstractClippedLearner, PolicyTerms
from ._velocity import fresh_velocity


class Chain(eqx.Module):
    """The extras of an action: the chain from noise to it.

    **Attributes:**

    - `points`: from noise to action.
    - `log_density`: of each step.
    """

    points: Float[Array, "*batch points latent"]
    log_density: Float[Array, "*batch steps"]


@final
class ChainEncoder(AbstractEncoder):
    """A policy that goes from noise to an action in steps along a learned velocity field, with new noise in each step.

    **Arguments:**

    - `velocity`: the field.
    - `statistics`: running statistics of observations.
    - `step_std`: the standard deviation of the noise of each step, σ.
    - `latent_size`: the length of actions.
    - `num_steps`: steps from noise to action.
    """

    velocity: ConditionalField
    statistics: RunningStatistics
    step_std: Constant
    latent_size: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def sample(
        self, observation: Float[Array, " observation"], key: RandomKey
    ) -> tuple[Float[Array, " latent"], Chain]:
        """Samples an action before `tanh`, and the chain that ends in it."""
        start_key, noise_key = jax.random.split(key)
        start = jax.random.normal(start_key, (1, self.latent_size))
        points = self._walk(
            observation,
            jnp.concatenate([start, jax.random.normal(noise_key, (self.num_steps, self.latent_size))]),
        )
        return points[-1], Chain(points, self.log_densities(observation, points))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the start of the chain and of the noise of each step."""
        return (1 + self.num_steps, self.latent_size)

    def from_noise(
        self, observation: Float[Array, " observation"], noise: Float[Array, "points latent"]
    ) -> Float[Array, " latent"]:
        """The end of the chain."""
        return self._walk(observation, noise)[-1]

    def log_densities(
        self, observation: Float[Array, " observation"], points: Float[Array, "points latent"]
    ) -> Float[Array, " steps"]:
        """The log-density of each step of a chain, given its start."""
        normalised = self.statistics.normalise_one(observation)
        mean = jax.vmap(self._mean, in_axes=(None, 0, 0))(normalised, points[:-1], self._times())
        return log_density(points[1:], mean, self.step_std.value)

    def _walk(
        self, observation: Float[Array, " observation"], noise: Float[Array, "points latent"]
    ) -> Float[Array, "points latent"]:
        """The chain that starts at the first noise; each of the others is that of a step, before it is scaled by σ."""
        normalised = self.statistics.normalise_one(observation)

        def step(point: Float[Array, " latent"], inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            time, noise = inputs
            point = self._mean(normalised, point, time) + noise
            return point, point

        _, points = jax.lax.scan(step, noise[0], (self._times(), self.step_std.value * noise[1:]))
        return jnp.concatenate([noise[:1], points])

    def _mean(
        self, normalised: Float[Array, " observation"], point: Float[Array, " latent"], time: Float[Array, ""]
    ) -> Float[Array, " latent"]:
        return point + self.velocity(normalised, point, time) / self.num_steps

    def _times(self) -> Float[Array, " steps"]:
        return jnp.arange(self.num_steps) / self.num_steps


@final
class DPPO(AbstractClippedLearner):
    """Diffusion policy policy optimisation, with the values of the GoRL paper's baseline.

    Every step of the chain is an action of its own with a Gaussian likelihood; each has its own ratio, and all of them
    share the advantage of the action that the chain ends in.

    **Arguments:**

    Those of [`AbstractClippedLearner`][], and

    - `num_steps`: steps from noise to action.
    - `step_std`: the standard deviation of the noise of each step, σ.
    - `num_frequencies`: frequencies that the time is embedded with.

    ??? cite "Reference"

        Ren et al. (2024), *Diffusion Policy Policy Optimization*, arXiv 2409.00588; the chain is the one that the FPO
        paper (arXiv 2507.21053) and the GoRL paper compare with: an Euler step of a flow and noise of a fixed size.
    """

    on_actions: bool = eqx.field(static=True, default=True, init=False)
    learning_rate: Real = float_field(3e-4, above=0)
    num_steps: int = static_field(10)
    step_std: Real = float_field(0.05, above=0)
    num_frequencies: int = static_field(4)

    def fresh_encoder(self, observation_size: int, latent_size: int, key: RandomKey) -> ChainEncoder:
        return ChainEncoder(
            velocity=fresh_velocity(self, observation_size, latent_size, self.num_frequencies, key),
            statistics=RunningStatistics.empty(observation_size),
            step_std=Constant(jnp.asarray(self.step_std)),
            latent_size=latent_size,
            num_steps=self.num_steps,
        )

    @property
    def encoder_width(self) -> int:
        return self.policy_width * self.num_steps

    def policy_metric_names(self) -> tuple[str, ...]:
        return ()

    def policy_terms(
        self,
        encoder: AbstractEncoder,
        observation: Float[Array, " observation"],
        latent: Float[Array, " latent"],
        extras: Chain,
    ) -> PolicyTerms:
        assert isinstance(encoder, ChainEncoder)
        log_ratio = encoder.log_densities(observation, extras.points) - extras.log_density
        return PolicyTerms(log_ratio, jnp.zeros(()), {})
