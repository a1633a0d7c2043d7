"""Why the numbers of a seed stopped being finite."""

import enum

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Divergence(enum.IntEnum):
    """Where a number was first found not to be finite.

    - `REWARD`, `OBSERVATION`: in what the environment gave, while the policy was sound. A simulation that blew up and
        ended its episode is none: environments may do so.
    - `PARAMETERS`: in the encoder that is being trained.
    - `DECODER`: in the decoder, or in its loss on the pairs held out.
    """

    NONE = -1
    REWARD = 0
    OBSERVATION = 1
    PARAMETERS = 2
    DECODER = 3

    @property
    def description(self) -> str:
        """A sentence without its subject: what was not finite."""
        return {
            Divergence.NONE: "every number was finite",
            Divergence.REWARD: "the environment gave a reward that is not finite",
            Divergence.OBSERVATION: "the environment gave an observation that is not finite",
            Divergence.PARAMETERS: "the parameters of the encoder are not finite any more",
            Divergence.DECODER: "the regression of the decoder did not stay finite",
        }[self]


def first_of(*found: tuple[Bool[Array, ""], Divergence]) -> Int[Array, ""]:
    """The first of several that was found; `Divergence.NONE` if none was."""
    return jnp.select([is_found for is_found, _ in found], [int(kind) for _, kind in found], int(Divergence.NONE))
