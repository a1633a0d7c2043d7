"""The trainable part of a module."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from ._ode import Integrator
from ._statistics import RunningStatistics


class Constant(eqx.Module):
    """A number in a module that is not trained.

    **Attributes:**

    - `value`: the number.
    """

    value: Float[Array, ""]


def split_trainable(module: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a module into its trainable part and the rest (statistics, tolerances, constants). `equinox.combine` joins
    them."""

    def is_fixed(node: PyTree) -> bool:
        return isinstance(node, RunningStatistics | Integrator | Constant)

    trainable = jax.tree.map(lambda node: eqx.is_inexact_array(node) and not is_fixed(node), module, is_leaf=is_fixed)
    return eqx.partition(module, trainable)
