"""How many cores there are. Imports nothing but Python, as the command line asks before it imports JAX."""

import math
import os
import pathlib

_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def num_cores(cgroups: pathlib.Path = _CGROUPS) -> int:
    """How many cores this process may use: its affinity mask, or what the quota of its container comes to.

    **Arguments:**

    - `cgroups`: where Linux says what the quota is.
    """
    # An affinity mask is what a cluster allots; macOS and Windows have none.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_quota(cgroups))))


def _quota(cgroups: pathlib.Path) -> float:
    """Cores' worth of time that a container gets, by version 2 or 1 of cgroups; infinite where nothing limits it."""
    try:
        if (both := cgroups / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        cores = float(quota) / float(period)
    except (OSError, ValueError):  # another system, or "max"
        return 2.0**31
    return cores if cores > 0 else 2.0**31  # version 1 says -1 for no limit
