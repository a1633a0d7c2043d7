"""The number of cores. It imports only Python, as the command line needs it before it imports JAX."""

import math
import os
import pathlib

_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def num_cores(cgroups: pathlib.Path = _CGROUPS) -> int:
    """The number of cores that this process may use: its affinity mask, or the quota of its container.

    **Arguments:**

    - `cgroups`: the directory of Linux's control groups.
    """
    # An affinity mask is what a cluster allots; macOS and Windows have none.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(cgroups))))


def _quota(cgroups: pathlib.Path) -> float:
    """The cores of a container's quota, by version 2 or 1 of cgroups; infinitely many without a quota."""
    try:
        if (both := cgroups / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        cores = float(quota) / float(period)
    except (OSError, ValueError):  # another system, or "max"
        return math.inf
    return cores if cores > 0 else math.inf  # version 1 says -1 for no limit
