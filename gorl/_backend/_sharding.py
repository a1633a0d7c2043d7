"""Sharding of seeds over devices: GPUs, or the cores of a CPU (`jax_num_cpu_devices`)."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._batching import on_cpu
from ._machine import memory_of_machine

AXIS = "seeds"


def seed_sharding(num_seeds: int) -> NamedSharding | None:
    """Sharding of the seeds over the local devices: the largest number of devices that divides them.

    `None` if that is one, or if `jax.default_device` is set.
    """
    devices = jax.local_devices()
    if num_seeds < 2 or jax.config.jax_default_device is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    count = max(count for count in range(1, len(devices) + 1) if num_seeds % count == 0)
    return NamedSharding(Mesh(np.asarray(devices[:count]), (AXIS,)), PartitionSpec(AXIS)) if count > 1 else None


def memory_for_seeds(num_seeds: int) -> float:
    """Bytes of memory of the devices that the seeds go on; infinite if unknown. A CPU's devices share one memory."""
    sharding = seed_sharding(num_seeds)
    devices = jax.device_put(0).devices() if sharding is None else sharding.device_set
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    return float(sum(limits)) if all(limits) else memory_of_machine()


def map_seeds(function: Callable[[PyTree, PyTree], PyTree], num_seeds: int, mapped: PyTree, shared: PyTree) -> PyTree:
    """`jax.vmap(function, in_axes=(0, None))(mapped, shared)`, sharded over the local devices.

    On a CPU each device runs its seeds sequentially, as they would compete for its cache.

    **Arguments:**

    - `function`: of one seed.
    - `num_seeds`: the length of the leading axis of `mapped`.
    - `mapped`: arrays with an axis of seeds in front.
    - `shared`: arrays that all seeds have in common.
    """

    def on_device(mapped: PyTree, shared: PyTree) -> PyTree:
        def one(of_seed: PyTree) -> PyTree:
            return function(of_seed, shared)

        return jax.lax.map(one, mapped) if on_cpu() else jax.vmap(one)(mapped)

    if (sharding := seed_sharding(num_seeds)) is not None:
        specs = (sharding.spec, PartitionSpec())
        on_device = jax.shard_map(
            on_device, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False
        )
    return on_device(mapped, shared)


def num_devices_of_program() -> int:
    """The number of devices that the program that is being traced will run on."""
    return max(1, jax.sharding.get_abstract_mesh().size)
