"""Trees of arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no number of a tree is infinite or NaN."""
    parts = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack([jnp.ones((), bool), *parts]))  # a tree may have no leaves


def described(tree: PyTree) -> dict[str, str]:
    """The type and the shape of every array, by its path in the tree."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "dtype")
    }


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The paths of the arrays in which two descriptions differ, in the order of the first."""
    return [path for path in dict.fromkeys([*one, *other]) if one.get(path) != other.get(path)]


def is_traced(leaf: Any) -> bool:
    """Whether a program is being traced in which the value of `leaf` is not known yet."""
    return isinstance(leaf, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
