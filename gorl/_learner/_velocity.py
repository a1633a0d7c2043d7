"""The velocity field of a policy that flows from noise to an action."""

from .._network import ConditionalField
from .._types import RandomKey
from ._clipped import AbstractClippedLearner

_OUTPUT_SCALE = 0.25


def fresh_velocity(
    learner: AbstractClippedLearner, observation_size: int, action_size: int, num_frequencies: int, key: RandomKey
) -> ConditionalField:
    """A field of the learner's policy size, whose output is scaled down as in the FPO paper (arXiv 2507.21053)."""
    return ConditionalField.init(
        observation_size,
        action_size,
        learner.policy_width,
        learner.policy_depth,
        num_frequencies,
        key=key,
        output_scale=_OUTPUT_SCALE,
    )
