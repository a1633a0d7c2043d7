"""Large computations a block at a time, so that on a CPU what is worked on stays in its cache.

The gradient of a large batch otherwise spends up to half of its time on waiting for memory: every layer writes what it
made of the whole batch, and the way back reads it again. Anything but a CPU gets everything at once. Which it is, JAX's
default backend says as a program is traced; where that is not what it runs on, it is slower and no less right.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, PyTree, Shaped

# What the widest layer makes of one block: a mebibyte of 32-bit floats, which is what a core's own cache holds.
_BLOCK_SIZE = 2**18


def on_cpu() -> bool:
    """Whether this program is going to run on a CPU."""
    return jax.default_backend() == "cpu"


def mean_gradient(
    loss: Callable[[PyTree, Any], tuple[Array, PyTree]],
    trainable: PyTree,
    rows: PyTree[Shaped[Array, "rows ..."]],
    row_size: int,
) -> tuple[PyTree, PyTree]:
    """The gradient of a loss that is a mean over rows.

    **Arguments:**

    - `loss`: of what is trained and of some of the rows: a mean over these rows, and a tree of further means.
    - `trainable`: what the gradient is taken by.
    - `rows`: arrays with an axis of rows in front.
    - `row_size`: how many numbers the widest layer makes of one row.

    **Returns:**

    The gradient, and the further means. How a CPU cuts the rows changes neither, except by rounding.
    """

    def gradient(rows: PyTree) -> tuple[PyTree, PyTree]:
        return jax.grad(loss, has_aux=True)(trainable, rows)

    num_rows = jax.tree.leaves(rows)[0].shape[0]
    num_blocks = _num_blocks(num_rows, row_size)
    if num_blocks == 1 or not on_cpu():
        return gradient(rows)

    def add(total: PyTree, block: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(block)), None

    blocks = jax.tree.map(lambda leaf: leaf.reshape(num_blocks, -1, *leaf.shape[1:]), rows)
    shapes = jax.eval_shape(gradient, rows)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, nothing, blocks)
    return jax.tree.map(lambda leaf: leaf / num_blocks, total)


def sequential_vmap(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of arrays and modules of which a CPU computes what `vmap` asks for one after the other.

    Side by side they would have to share its cache, and each would wait for the longest loop of any of them.
    """
    if not on_cpu():
        return function

    def call(*arguments: PyTree) -> PyTree:
        arrays, static = eqx.partition(arguments, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        def flat(*leaves: Array) -> PyTree:
            return function(*eqx.combine(jax.tree.unflatten(structure, leaves), static))

        # Traced here, as it would be traced again for the loop.
        program, returned = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        results = jax.custom_batching.sequential_vmap(jaxpr_as_fun(program))(*leaves)
        return jax.tree.unflatten(jax.tree.structure(returned), results)

    return call


def map_rows(
    function: Callable[[Any], PyTree], rows: PyTree[Shaped[Array, "rows ..."]], row_size: int
) -> PyTree[Shaped[Array, "rows ..."]]:
    """`jax.vmap(function)(rows)`.

    **Arguments:**

    - `function`: of one row.
    - `rows`: arrays with an axis of rows in front.
    - `row_size`: how many numbers the widest layer makes of one row.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    rows_in_block = max(1, _BLOCK_SIZE // row_size)
    if num_rows <= rows_in_block or not on_cpu():
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=rows_in_block)


def longest_axis(parameters: PyTree) -> int:
    """As many numbers as the widest layer of any network with these parameters makes of one row, or a few more."""
    return max((size for leaf in jax.tree.leaves(parameters) for size in leaf.shape), default=1)


def _num_blocks(num_rows: int, row_size: int) -> int:
    """Into how many equal blocks the rows are cut: so many that each fits, or a few more if they do not divide."""
    needed = -(-num_rows * row_size // _BLOCK_SIZE)
    fitting = (number for number in range(needed, min(2 * needed, num_rows) + 1) if num_rows % number == 0)
    return next(fitting, 1)
