"""Runs beside each other on several devices: GPUs, or the cores of a CPU that JAX was told to take for devices."""

import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "seeds"


def spread(number: int) -> NamedSharding | None:
    """How so many runs go on the devices of this process: as many on each, on as many of them as that allows.

    `None` if that is one, and where `jax.default_device` says which one it has to be.
    """
    devices = jax.local_devices()
    if number < 2 or jax.config.jax_default_device is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    count = max(count for count in range(1, len(devices) + 1) if number % count == 0)
    return NamedSharding(Mesh(np.asarray(devices[:count]), (AXIS,)), PartitionSpec(AXIS)) if count > 1 else None


def num_devices_of_program() -> int:
    """On how many devices the program that is being traced is going to run."""
    return max(1, jax.sharding.get_abstract_mesh().size)


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # which heeds what a cluster allots; macOS and Windows have none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
