"""Flows along a learned velocity field, from noise at time 0 to an action at time 1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._network import ConditionalField
from ._ode import Integrator


def integrate_flow(
    velocity: ConditionalField,
    normalised: Float[Array, " observation"],
    start: Float[Array, " action"],
    integrator: Integrator,
) -> Float[Array, " action"]:
    """The end of the path that starts at `start`, given a normalised observation; without a controller, in equal
    steps."""
    times = jnp.linspace(0.0, 1.0, integrator.num_steps + 1)
    return integrator(jax.tree_util.Partial(_derivative, velocity, normalised), start, times)


def _derivative(
    velocity: ConditionalField,
    normalised: Float[Array, " observation"],
    time: Float[Array, ""],
    point: Float[Array, " action"],
) -> Float[Array, " action"]:
    return velocity(normalised, point, time)
