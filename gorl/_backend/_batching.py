"""Large computations in blocks that fit a CPU's cache.

Without blocks the gradient of a large batch waits for memory up to half of its time: every layer writes its output for
the whole batch, and the backward pass reads it again. Other devices get the whole batch at once. JAX's default backend
decides when a program is traced; if it then runs on another device, it is slower but just as correct.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, PyTree, Shaped

from ._rows import all_rows, apart, mean_of_parts, own_rows

# Numbers in the output of the widest layer for one block: a mebibyte of 32-bit floats, the size of a core's own cache.
_BLOCK_SIZE = 2**18


def on_cpu() -> bool:
    """Whether the program that is being traced will run on a CPU."""
    return jax.default_backend() == "cpu"


def mean_gradient(
    loss: Callable[[PyTree, Any], tuple[Array, PyTree]],
    trainable: PyTree,
    rows: PyTree[Shaped[Array, "rows ..."]],
    row_size: int,
) -> tuple[PyTree, PyTree]:
    """The gradient of a loss that is a mean over rows. The devices of a mesh share the rows.

    **Arguments:**

    - `loss`: a function of `trainable` and of some rows; returns a mean over these rows, and a tree of further means.
    - `trainable`: the parameters.
    - `rows`: arrays with an axis of rows in front.
    - `row_size`: the width of the widest layer.

    **Returns:**

    The gradient, and the further means. The blocks change both by rounding only.
    """

    def gradient(rows: PyTree) -> tuple[PyTree, PyTree]:
        return jax.grad(loss, has_aux=True)(trainable, rows)

    num_rows = jax.tree.leaves(rows)[0].shape[0]
    rows = own_rows(rows, num_rows)
    with apart():
        found = _mean_over_blocks(gradient, rows, row_size)
    return mean_of_parts(found, num_rows)


def _mean_over_blocks(function: Callable[[PyTree], PyTree], rows: PyTree, row_size: int) -> PyTree:
    """`function(rows)`, where that is a mean over rows."""
    num_blocks = _num_blocks(jax.tree.leaves(rows)[0].shape[0], row_size)
    if num_blocks == 1 or not on_cpu():
        return function(rows)

    def add(total: PyTree, block: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(block)), None

    blocks = jax.tree.map(lambda leaf: leaf.reshape(num_blocks, -1, *leaf.shape[1:]), rows)
    shapes = jax.eval_shape(function, rows)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, nothing, blocks)
    return jax.tree.map(lambda leaf: leaf / num_blocks, total)


def sequential_vmap(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Wraps `function` so that `vmap` runs it sequentially on a CPU.

    In parallel, the instances would share the cache, and each would wait for the longest loop of all.
    """
    if not on_cpu():
        return function

    def call(*arguments: PyTree) -> PyTree:
        arrays, static = eqx.partition(arguments, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        def flat(*leaves: Array) -> PyTree:
            return function(*eqx.combine(jax.tree.unflatten(structure, leaves), static))

        # Traced here, so that it is not traced again for the loop.
        program, returned = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        results = jax.custom_batching.sequential_vmap(jaxpr_as_fun(program))(*leaves)
        return jax.tree.unflatten(jax.tree.structure(returned), results)

    return call


def map_rows(
    function: Callable[[Any], PyTree], rows: PyTree[Shaped[Array, "rows ..."]], row_size: int
) -> PyTree[Shaped[Array, "rows ..."]]:
    """`jax.vmap(function)(rows)`. The devices of a mesh share the rows.

    **Arguments:**

    - `function`: of one row.
    - `rows`: arrays with an axis of rows in front.
    - `row_size`: the width of the widest layer.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    rows = own_rows(rows, num_rows)
    rows_in_block = max(1, _BLOCK_SIZE // row_size)
    if jax.tree.leaves(rows)[0].shape[0] <= rows_in_block or not on_cpu():
        found = jax.vmap(function)(rows)
    else:
        found = jax.lax.map(function, rows, batch_size=rows_in_block)
    return all_rows(found, num_rows)


def longest_axis(parameters: PyTree) -> int:
    """The width of the widest layer of any network with these parameters, or a little more."""
    return max((size for leaf in jax.tree.leaves(parameters) for size in leaf.shape), default=1)


def _num_blocks(num_rows: int, row_size: int) -> int:
    """The number of equal blocks: enough that each fits the cache, or a few more so that it divides the rows."""
    needed = -(-num_rows * row_size // _BLOCK_SIZE)
    fitting = (number for number in range(needed, min(2 * needed, num_rows) + 1) if num_rows % number == 0)
    return next(fitting, 1)
