"""Generalised advantage estimation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._types import Real


def generalised_advantage(
    rewards: Float[Array, "time *batch"],
    values: Float[Array, "time *batch"],
    final_value: Float[Array, "*batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: Real,
    gae_lambda: Real,
) -> tuple[Float[Array, "time *batch"], Float[Array, "time *batch"]]:
    """The advantages and the value targets of a stretch of experience.

    After a terminal step nothing more is earned. At a truncated step (the time limit) the episode would have gone on,
    but the state it would have gone on to has been replaced by a start state: such a step has no advantage, its target
    is the value itself, and the steps before it look no further than its value.

    **Arguments:**

    - `rewards`, `values`: what each step earned, and the value of the state it was taken in.
    - `final_value`: the value of the state after the last step.
    - `terminated`, `truncated`: whether the episode ended with the step, and why.
    - `discount`, `gae_lambda`: γ and λ.

    **Returns:**

    The advantages, and the targets for the values. The advantages use the targets of the next states, like Brax's.

    ??? cite "Reference"

        Schulman et al. (2016), *High-Dimensional Continuous Control Using Generalized Advantage Estimation*, equation
        (16).
    """
    goes_on = 1.0 - terminated
    counts = 1.0 - truncated
    next_values = jnp.concatenate([values[1:], final_value[None]])
    errors = counts * (rewards + discount * goes_on * next_values - values)

    def accumulate(
        later: Float[Array, "*batch"], step: tuple[Array, Array]
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        error, carried = step
        sum_of_errors = error + carried * later
        return sum_of_errors, sum_of_errors

    carried = discount * gae_lambda * goes_on * counts
    _, sums = jax.lax.scan(accumulate, jnp.zeros_like(final_value), (errors, carried), reverse=True)
    targets = values + sums
    next_targets = jnp.concatenate([targets[1:], final_value[None]])
    advantages = counts * (rewards + discount * goes_on * next_targets - values)
    return advantages, targets
