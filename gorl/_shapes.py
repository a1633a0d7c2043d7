"""Checks of shapes that broadcasting would hide."""

from typing import Any

import jax.numpy as jnp

from ._errors import InputError


def check_vector(what: str, array: Any, size: int, of_several: str = "use jax.vmap") -> None:
    """Checks that an array is one vector. Shapes are known when a program is traced, so this costs nothing.

    **Arguments:**

    - `what`: the name of the array, for the message.
    - `array`: the array.
    - `size`: its length.
    - `of_several`: the call that takes several, for the message.

    **Raises:**

    `gorl.InputError` if it is not.
    """
    shape = jnp.shape(array)
    if shape == (size,):
        return
    several = len(shape) > 1 and shape[-1] == size
    fix = f"for several, {of_several}" if several else "give one of that size"
    raise InputError(f"{what} must be one vector of {size} numbers, not an array of shape {shape}: {fix}.")
