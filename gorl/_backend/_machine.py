"""The cores and the memory. It imports only Python, as the command line needs it before it imports JAX."""

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


def memory_of_machine(cgroups: pathlib.Path = _CGROUPS) -> float:
    """Bytes of memory that this process may use: the machine's, or the limit of its container; infinite if unknown.

    **Arguments:**

    - `cgroups`: the directory of Linux's control groups.
    """
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # another system
        memory = math.inf
    for limit in (cgroups / "memory.max", cgroups / "memory" / "memory.limit_in_bytes"):  # versions 2 and 1
        try:
            memory = min(memory, float(limit.read_text()))
        except (OSError, ValueError):  # another version, or "max"
            continue
    return memory


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
