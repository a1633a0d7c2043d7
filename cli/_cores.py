"""The cores of a CPU, as devices of JAX's."""

import os


def use_every_core() -> None:
    """Lets seeds run beside each other, one to a core. To be called before JAX is imported.

    Whatever the caller's environment already says of devices is left as it is. On a GPU it changes nothing.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(num_cores()))


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # which heeds what a cluster allots; macOS and Windows have none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
