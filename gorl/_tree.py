"""Trees of arrays."""

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
