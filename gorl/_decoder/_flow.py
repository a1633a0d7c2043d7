"""Flow matching: a velocity field fitted to straight paths from noise to actions, integrated by diffrax."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._flow import integrate_flow
from .._hyperparameters import float_field, static_field
from .._network import ConditionalField
from .._ode import Integrator, check_solver, integrator, solver_name
from .._shapes import check_vector
from .._statistics import RunningStatistics
from .._types import RandomKey, Real
from ._base import AbstractDecoder, AbstractDecoderConfig


@final
class FlowDecoder(AbstractDecoder):
    """Maps a latent at time 0 to an action at time 1 along a learned velocity field.

    **Arguments:**

    - `velocity`: the field.
    - `statistics`: statistics of the observations that it was fitted to.
    - `integrator`: integrates the field; without a controller, in equal steps.

    ??? cite "Reference"

        Lipman et al. (2023), *Flow Matching for Generative Modeling*, section 4.1, with straight paths.
    """

    velocity: ConditionalField
    statistics: RunningStatistics
    integrator: Integrator = Integrator()

    def decode(
        self, observation: Float[Array, " observation"], latent: Float[Array, " action"]
    ) -> Float[Array, " action"]:
        """The end of the path that starts at `latent`."""
        return integrate_flow(self.velocity, self.statistics.normalise_one(observation), latent, self.integrator)

    def loss(
        self,
        observation: Float[Array, " observation"],
        latent: Float[Array, " action"],
        action: Float[Array, " action"],
        key: RandomKey,
    ) -> Float[Array, ""]:
        """The mean squared error of the velocity at a random time of the straight path from `latent` to `action`."""
        check_vector("the latent", latent, action.size)
        time = jax.random.uniform(key)
        point = (1 - time) * latent + time * action
        predicted = self.velocity(self.statistics.normalise_one(observation), point, time)
        return jnp.mean((predicted - (action - latent)) ** 2)


@final
class FlowMatching(AbstractDecoderConfig):
    """A flow-matching decoder, with the values of the GoRL paper.

    **Arguments:**

    - `width`, `depth`: hidden layers of the velocity network.
    - `num_frequencies`: frequencies that the time is embedded with.
    - `solver`: an explicit diffrax ODE solver or its name, such as `"Euler"`, `"Heun"`, `"Midpoint"`, `"Tsit5"`.
    - `num_steps`: equal steps from noise to action.
    - `rtol`, `atol`: give both for steps that a PID controller adapts to these tolerances, instead of equal ones.
    """

    width: int = static_field(32)
    depth: int = static_field(4)
    num_frequencies: int = static_field(4)
    solver: str = eqx.field(static=True, converter=solver_name, default="Euler")
    num_steps: int = static_field(10)
    rtol: Real | None = float_field(None, above=0)
    atol: Real | None = float_field(None, above=0)

    def init(self, statistics: RunningStatistics, action_size: int, key: RandomKey) -> FlowDecoder:
        """A decoder that is the identity map until it is fitted: its velocity starts close to zero."""
        velocity = ConditionalField.init(
            statistics.mean.shape[0],
            action_size,
            self.width,
            self.depth,
            self.num_frequencies,
            key=key,
            initial_scale=0.01,
        )
        return FlowDecoder(velocity, statistics, integrator(self.solver, self.num_steps, self.rtol, self.atol))

    def check(self) -> None:
        check_solver(self.solver, self.rtol, self.atol)
