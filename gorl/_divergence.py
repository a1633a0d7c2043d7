"""Why a seed diverged."""

import enum

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Divergence(enum.IntEnum):
    """Which number first was not finite.

    - `REWARD`, `OBSERVATION`: of the environment, while the parameters were finite. A simulation that blew up and ended
        its episode does not count: environments may do so.
    - `PARAMETERS`: of the encoder.
    - `DECODER`: parameters or validation loss of the decoder.
    """

    NONE = -1
    REWARD = 0
    OBSERVATION = 1
    PARAMETERS = 2
    DECODER = 3

    @property
    def description(self) -> str:
        """What was not finite, as a clause."""
        return {
            Divergence.NONE: "every number was finite",
            Divergence.REWARD: "the environment gave a reward that is not finite",
            Divergence.OBSERVATION: "the environment gave an observation that is not finite",
            Divergence.PARAMETERS: "the parameters of the encoder are not finite any more",
            Divergence.DECODER: "the regression of the decoder did not stay finite",
        }[self]


def first_of(*found: tuple[Bool[Array, ""], Divergence]) -> Int[Array, ""]:
    """The first one that is found; `Divergence.NONE` if none is."""
    return jnp.select([is_found for is_found, _ in found], [int(kind) for _, kind in found], int(Divergence.NONE))
