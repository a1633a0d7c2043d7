"""The density of a policy's actions, by the change of variables from its noise."""

from typing import Any

import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float

from ._errors import InputError
from ._gaussian import log_density as gaussian_log_density, log_tanh_slope
from ._promotion import usual_promotion
from ._shapes import check_vector
from ._types import RandomKey

_NUM_STARTS = 4
_TOLERANCE = 1e-4  # of an action before tanh
_FURTHEST = 1 - 1e-6  # of an action from 0, as tanh reaches 1 in 32 bits


@usual_promotion()
def log_density(
    policy: Any, observation: Float[Array, " observation"], action: Float[Array, " action"]
) -> Float[Array, ""]:
    """See `Policy.log_density`."""
    noise_shape = _noise_shape(policy)
    check_vector("the action of this policy", action, policy.action_size)
    target = jnp.arctanh(jnp.clip(action, -_FURTHEST, _FURTHEST))

    def missed(noise: Float[Array, " noise"], _: None) -> Float[Array, " action"]:
        return _before_tanh(policy, observation, noise) - target

    def solve(start: Float[Array, " noise"]) -> tuple[Float[Array, " noise"], Float[Array, ""]]:
        solver = optimistix.LevenbergMarquardt(rtol=1e-6, atol=1e-6)
        found = optimistix.least_squares(missed, solver, start, max_steps=32, throw=False).value
        error = jnp.max(jnp.abs(missed(found, None)))
        return found, jnp.where(jnp.isfinite(error), error, jnp.inf)

    others = jax.random.normal(jax.random.key(0), (_NUM_STARTS - 1, *noise_shape))
    found, errors = jax.vmap(solve)(jnp.concatenate([jnp.zeros((1, *noise_shape)), others]))
    best = jnp.argmin(errors)
    scale = 1 + jnp.max(jnp.abs(target))
    value = _before_tanh(policy, observation, found[best])
    density = _density_of_noise(policy, observation, found[best]) - log_tanh_slope(value)
    return jnp.where(errors[best] < _TOLERANCE * scale, density, jnp.nan)


@usual_promotion()
def sample_with_log_density(
    policy: Any, observation: Float[Array, " observation"], key: RandomKey
) -> tuple[Float[Array, " action"], Float[Array, ""]]:
    """See `Policy.sample_with_log_density`."""
    value, density = sample_before_tanh(policy, observation, key)
    return jnp.tanh(value), density - log_tanh_slope(value)


@usual_promotion()
def sample_before_tanh(
    policy: Any, observation: Float[Array, " observation"], key: RandomKey
) -> tuple[Float[Array, " action"], Float[Array, ""]]:
    """Samples an action of a policy before `tanh`, and returns its log-density there as well. The arguments are those
    of `Policy.sample_with_log_density`."""
    noise = jax.random.normal(key, _noise_shape(policy))
    return _before_tanh(policy, observation, noise), _density_of_noise(policy, observation, noise)


def _density_of_noise(
    policy: Any, observation: Float[Array, " observation"], noise: Float[Array, " noise"]
) -> Float[Array, ""]:
    """The log-density, before `tanh`, of the action that noise becomes."""
    slope = jax.jacfwd(_before_tanh, 2)(policy, observation, noise)
    return gaussian_log_density(noise, 0.0, 1.0) - jnp.linalg.slogdet(slope)[1]


def _before_tanh(
    policy: Any, observation: Float[Array, " observation"], noise: Float[Array, " noise"]
) -> Float[Array, " action"]:
    return policy.decoder.decode(observation, policy.encoder.from_noise(observation, noise))


def _noise_shape(policy: Any) -> tuple[int, ...]:
    shape = policy.encoder.noise_shape
    if shape != (policy.action_size,):
        raise InputError(
            f"the density of a policy of a {type(policy.encoder).__name__} is not known, because its noise of shape "
            f"{shape} has more numbers than an action: only policies that map noise to actions one to one have one."
        )
    return shape
