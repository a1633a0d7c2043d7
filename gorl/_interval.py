"""How far a mean is to be trusted."""

import equinox as eqx
import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
_ENOUGH = 10  # values; an interval from fewer would claim more than they can say


class Interval(eqx.Module):
    """A mean and what is around it.

    **Attributes:**

    - `mean`: of the finite values; NaN if there are none.
    - `low`, `high`: the ends of the 95 % confidence interval of the mean; of fewer than ten finite values, the smallest
        and the largest. NaN if there is only one.
    - `is_confidence`: whether it is a confidence interval.
    """

    mean: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    is_confidence: bool

    @property
    def name(self) -> str:
        """What the two ends are called."""
        return "95 % interval" if self.is_confidence else "smallest and largest"

    @property
    def ends(self) -> str:
        """The two ends of a single interval as a text, such as "[12.3, 45.6]"."""
        return f"[{self.low:.1f}, {self.high:.1f}]"


def interval(values: Float[np.ndarray, "..."], axis: int = -1) -> Interval:
    """The mean of values and, of ten or more, its 95 % confidence interval by Student's t.

    Values that are not finite are left out, as those of a seed that diverged. Whoever shows the interval should say how
    many were left out.

    **Arguments:**

    - `values`: independent of each other along the axis, and about normal.
    - `axis`: which.
    """
    values = np.moveaxis(values.astype(np.float64), axis, -1)
    finite = np.where(np.isfinite(values), values, np.nan)
    count = np.sum(np.isfinite(values), axis=-1)
    is_confidence = values.shape[-1] >= _ENOUGH
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(finite, axis=-1) / count
        if is_confidence:
            import scipy.stats  # which takes as long to import as a fifth of gorl

            squares = np.nansum((finite - np.expand_dims(mean, -1)) ** 2, axis=-1)
            low, high = scipy.stats.t.interval(CONFIDENCE, count - 1, mean, np.sqrt(squares / (count - 1) / count))
        else:
            low = np.min(finite, axis=-1, initial=np.inf, where=np.isfinite(finite))
            high = np.max(finite, axis=-1, initial=-np.inf, where=np.isfinite(finite))
    few = count < 2
    low, high = np.where(few, np.nan, low), np.where(few, np.nan, high)
    return Interval(np.asarray(mean), low, high, is_confidence)
