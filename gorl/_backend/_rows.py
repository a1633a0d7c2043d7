"""Rows of arrays that the devices of a mesh share: environments, episodes, or the rows of a batch.

Where a program does not run on such a mesh, these functions return what they are given. Where the devices do not divide
the rows, each device has all of them. No function here is used within an environment step or a decoder's solve.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Tree = TypeVar("Tree", bound=PyTree)

ENVIRONMENTS = "envs"

_are_apart = contextvars.ContextVar("_are_apart", default=False)


def num_parts() -> int:
    """The number of devices that the environments of a seed are on, in the program that is being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[ENVIRONMENTS] if ENVIRONMENTS in mesh.manual_axes else 1


def own_rows(tree: Tree, num_rows: int) -> Tree:
    """This device's part of arrays with an axis of `num_rows` rows in front."""
    if not _are_shared(num_rows):
        return tree
    count = num_rows // num_parts()
    begin = jax.lax.axis_index(ENVIRONMENTS) * count
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, count), tree)


def all_rows(tree: Tree, num_rows: int, axis: int = 0) -> Tree:
    """The rows of all devices: the inverse of [`own_rows`][]. The rows are along `axis`."""
    if not _are_shared(num_rows):
        return tree

    gather = functools.partial(jax.lax.all_gather, axis_name=ENVIRONMENTS, axis=axis, tiled=True)
    return jax.tree.map(functools.partial(through_key_data, gather), tree)


def mean_of_parts(tree: Tree, num_rows: int) -> Tree:
    """The means over `num_rows` rows, given the means over the rows of each device."""
    return jax.lax.pmean(tree, ENVIRONMENTS) if _are_shared(num_rows) else tree


def on_first_part(effect: Callable[[], None]) -> None:
    """Does something on the first of the devices that share the environments, in the name of all."""
    if num_parts() == 1:
        effect()
    else:
        jax.lax.cond(jax.lax.axis_index(ENVIRONMENTS) == 0, effect, lambda: None)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """A context in which rows are those of one device already, and are not shared again."""
    token = _are_apart.set(True)
    try:
        yield
    finally:
        _are_apart.reset(token)


def through_key_data(function: Callable[[Array], Any], leaf: Array) -> Any:
    """`function(leaf)`, which for random keys is a function of their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(function(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return function(leaf)


def _are_shared(num_rows: int) -> bool:
    return not _are_apart.get() and num_parts() > 1 and num_rows % num_parts() == 0
