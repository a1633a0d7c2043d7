"""Returns and advantages of consecutive steps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._types import Real


def lambda_returns(
    rewards: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: Real,
    trace_decay: Real,
) -> Float[Array, "time *batch"]:
    """The λ-return of each step.

    A terminated step has no next state. A truncated step (the time limit) and the last step are bootstrapped with the
    value of their next state.

    **Arguments:**

    - `rewards`: of each step.
    - `next_values`: the value of the next state of each step, before any restart.
    - `terminated`, `truncated`: whether the episode ended with the step, and why.
    - `discount`, `trace_decay`: γ and λ.

    ??? cite "Reference"

        Sutton & Barto (2018), *Reinforcement Learning: An Introduction*, equation (12.18).
    """

    def look_back(
        later: Float[Array, "*batch"], step: tuple[Array, Array, Array, Array]
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        reward, next_value, has_terminated, was_cut = step
        onwards = jnp.where(was_cut, next_value, (1 - trace_decay) * next_value + trace_decay * later)
        worth = reward + jnp.where(has_terminated, 0.0, discount * onwards)
        return worth, worth

    _, worths = jax.lax.scan(look_back, next_values[-1], (rewards, next_values, terminated, truncated), reverse=True)
    return worths


def generalised_advantage(
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    next_values: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: Real,
    gae_lambda: Real,
) -> tuple[Float[Array, "time *batch"], Float[Array, "time *batch"]]:
    """The generalised advantage and the value target of each step.

    **Arguments:**

    - `values`: the value of the state of each step.

    The others are those of [`lambda_returns`][].

    **Returns:**

    The advantages, and the targets for the values. The advantages use the targets of the next states, like Brax's.

    ??? cite "Reference"

        Schulman et al. (2016), *High-Dimensional Continuous Control Using Generalized Advantage Estimation*, equation
        (16).
    """
    targets = lambda_returns(rewards, next_values, terminated, truncated, discount, gae_lambda)
    following = jnp.concatenate([targets[1:], next_values[-1:]])
    next_targets = jnp.where(truncated, next_values, following)
    return rewards + jnp.where(terminated, 0.0, discount * next_targets) - values, targets
