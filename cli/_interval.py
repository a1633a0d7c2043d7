"""How sure a mean is."""

import numpy as np
import scipy.stats
from jaxtyping import Float

CONFIDENCE = 0.95


def mean_interval(
    values: Float[np.ndarray, "..."], axis: int = -1
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The mean and its 95 % confidence interval by Student's t, which takes the values to be about normal.

    Values that are not finite are left out, as those of a seed that diverged: what is said is of the others only, and
    whoever shows it should say how many were left out.

    **Arguments:**

    - `values`: independent of each other along the axis.
    - `axis`: which.

    **Returns:**

    The mean, and the lower and upper end of the interval. With one finite value there is no interval, and with none no
    mean either: they are NaN.
    """
    values = values.astype(np.float64)
    is_there = np.isfinite(values)
    count = np.sum(is_there, axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.sum(values, axis=axis, where=is_there) / count
        squares = np.sum((values - np.expand_dims(mean, axis)) ** 2, axis=axis, where=is_there)
        error = np.sqrt(squares / (count - 1) / count)
        half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    return mean, mean - half, mean + half
