"""Checks of shapes where broadcasting would make numbers of a wrong one, and wrong numbers."""

from typing import Any

import jax.numpy as jnp

from ._errors import InputError


def check_vector(what: str, array: Any, size: int, of_several: str = "use jax.vmap") -> None:
    """Checks that an array is one vector. Shapes are known as a program is traced, so that this costs nothing.

    **Arguments:**

    - `what`: what it is, for the message.
    - `array`: the array.
    - `size`: the length that it has to have.
    - `of_several`: how several are taken.

    **Raises:**

    `gorl.InputError` if it is not.
    """
    shape = jnp.shape(array)
    if shape == (size,):
        return
    several = len(shape) > 1 and shape[-1] == size
    fix = f"for several, {of_several}" if several else "give one of that size"
    raise InputError(f"{what} must be one vector of {size} numbers, not an array of shape {shape}: {fix}.")
