"""JAX's usual rules of promotion, for code that is not ours."""

import contextlib
from collections.abc import Iterator

import jax
import optax


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """Allows operands of different types and ranks, as JAX does by default. Also a decorator.

    The library itself keeps to the strictest rules that a program may set (`jax_numpy_dtype_promotion="strict"`,
    `jax_numpy_rank_promotion="raise"`). Optax, flashbax and the physics of Brax and MJX do not.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def usually_promoting(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser whose updates work under any rules of promotion."""
    return optax.GradientTransformation(optimiser.init, usual_promotion()(optimiser.update))
