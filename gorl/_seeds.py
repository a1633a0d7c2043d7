"""Single seeds of a run over several."""

import operator
from typing import Any, SupportsIndex, TypeVar

import jax

from ._errors import InputError
from ._policy import Policy
from ._state import Curve, Result, TrainState

Several = TypeVar("Several", bound=Result | Policy | Curve | TrainState)


def of_seed(results: Several, index: SupportsIndex) -> Several:
    """One seed of a run over several.

    **Arguments:**

    - `results`: a `gorl.Result`, a `gorl.Policy`, a `gorl.Curve` or a `gorl.TrainState` with a leading axis of seeds,
        or of the values of a batch.
    - `index`: of the seed, counted from 0.

    **Returns:**

    The same without that axis.

    **Raises:**

    `gorl.InputError` if there is no such seed, or no axis of seeds.
    """
    kind = type(results).__name__
    shape = _batch_shape(results)
    if not shape:
        raise InputError(f"this {kind} is of one seed already: take it as it is.")
    try:
        number = operator.index(index)
    except TypeError as error:
        raise InputError(f"the seed must be a whole number from 0 to {shape[0] - 1}, not {index!r}.") from error
    if not 0 <= number < shape[0]:  # JAX would take the nearest
        raise InputError(f"there is no seed {number} in this {kind}: it holds 0 to {shape[0] - 1}.")
    return jax.tree.map(lambda leaf: leaf[number], results)


def _batch_shape(results: Any) -> tuple[int, ...]:
    """The leading axes of several seeds. The type decides which they are, as a curve always has an axis."""
    if isinstance(results, Policy):
        return results.batch_shape
    if isinstance(results, Result):
        return results.diverged_at.shape
    if isinstance(results, Curve):
        return results.iterations.shape[:-1]
    if isinstance(results, TrainState):
        return results.key.shape
    raise InputError(
        f"of_seed takes a gorl.Result, Policy, Curve or TrainState, not {type(results).__name__}: give one of these."
    )
