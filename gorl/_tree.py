"""Trees of arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree


def where(condition: PyTree, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees, by a condition that is known only as the program runs."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), if_true, if_false)


def is_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no number of a tree is infinite or NaN."""
    parts = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack([jnp.ones((), bool), *parts]))  # a tree may have no leaves
