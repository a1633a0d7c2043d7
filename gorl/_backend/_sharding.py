"""Sharding over a mesh of devices: seeds over one axis, the environments of each seed over the other.

Devices are GPUs, or the cores of a CPU (`jax_num_cpu_devices`). Every device of the environments' axis holds the same
networks and takes the same decisions. It simulates its own environments, and computes gradients from its own rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._batching import on_cpu
from ._machine import memory_of_machine
from ._rows import ENVIRONMENTS, through_key_data

SEEDS = "seeds"
MESH_AXES = (SEEDS, ENVIRONMENTS)


def default_mesh(num_seeds: int, num_envs: int) -> Mesh | None:
    """The mesh of a run: the devices that divide the seeds, and of what is left those that divide the environments.

    A core of a CPU gets no environments of another's seed: one device computes on all cores already. `None` if that is
    one device, or if `jax.default_device` is set.
    """
    if jax.config.jax_default_device is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    devices = jax.devices()
    for_seeds = largest_divisor(num_seeds, len(devices))
    for_envs = 1 if on_cpu() else largest_divisor(num_envs, len(devices) // for_seeds)
    count = for_seeds * for_envs
    return Mesh(np.asarray(devices[:count]).reshape(for_seeds, for_envs), MESH_AXES) if count > 1 else None


def with_both_axes(mesh: Mesh) -> Mesh:
    """A mesh of the same devices that has both axes, in order. An axis that it lacks has one device."""
    order = sorted(range(len(mesh.axis_names)), key=lambda axis: MESH_AXES.index(mesh.axis_names[axis]))
    shape = [mesh.shape.get(name, 1) for name in MESH_AXES]
    return Mesh(mesh.devices.transpose(order).reshape(shape), MESH_AXES)


def shardings(mesh: Mesh, *, has_seeds: bool) -> tuple[NamedSharding, NamedSharding]:
    """How a mesh holds what every seed has, and what every environment has."""
    of_seeds = (SEEDS,) if has_seeds else ()
    return (
        NamedSharding(mesh, PartitionSpec(*of_seeds)),
        NamedSharding(mesh, PartitionSpec(*of_seeds, ENVIRONMENTS)),
    )


def on_one_device(tree: PyTree) -> PyTree:
    """Arrays on one device of this process. Every process that has a part of them must ask at the same time."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if all(len(leaf.sharding.device_set) == 1 for leaf in leaves):
        return tree
    if not all(leaf.is_fully_addressable for leaf in leaves):
        gather = functools.partial(multihost_utils.process_allgather, tiled=True)
        tree = jax.tree.map(functools.partial(through_key_data, gather), tree)
    return jax.device_put(tree, jax.local_devices()[0])


def on_mesh(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Arrays on a mesh, which other processes may have a part of. They must have the same arrays."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(leaf: jax.Array) -> jax.Array:
        content = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: content[index])

    return jax.tree.map(functools.partial(through_key_data, place), on_one_device(tree))


def memory_of(mesh: Mesh | None) -> float:
    """Bytes of memory of the devices of a mesh; infinite if unknown. A CPU's devices share one memory.

    Other processes are taken to have as much for each device as this one.
    """
    devices = list(jax.device_put(0).devices() if mesh is None else mesh.devices.flat)
    own = [device for device in devices if device.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in own]
    return (float(sum(limits)) if all(limits) else memory_of_machine()) * len(devices) / max(1, len(own))


def map_seeds(
    function: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    mesh: Mesh | None,
    mapped: PyTree,
    of_envs: PyTree,
    shared: PyTree,
    *,
    has_seeds: bool,
) -> tuple[PyTree, PyTree]:
    """`jax.vmap(function, in_axes=(0, 0, None))(mapped, of_envs, shared)`, sharded over a mesh.

    On a CPU each device runs its seeds sequentially, as they would compete for its cache.

    **Arguments:**

    - `function`: of one seed; returns what every seed has and what every environment has.
    - `mesh`: `None` for one device.
    - `mapped`: arrays with an axis of seeds in front.
    - `of_envs`: arrays with an axis of seeds and one of environments in front.
    - `shared`: arrays that all seeds have in common.
    - `has_seeds`: whether there is an axis of seeds; if not, `function` is called once.
    """

    def on_device(mapped: PyTree, of_envs: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        def one(of_seed: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            return function(*of_seed, shared)

        if not has_seeds:
            return one((mapped, of_envs))
        return jax.lax.map(one, (mapped, of_envs)) if on_cpu() else jax.vmap(one)((mapped, of_envs))

    if mesh is None:
        return on_device(mapped, of_envs, shared)
    specs = tuple(sharding.spec for sharding in shardings(mesh, has_seeds=has_seeds))
    in_specs = (*specs, PartitionSpec())
    sharded = jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=specs, check_vma=False)
    return sharded(mapped, of_envs, shared)


@eqx.filter_jit
def call_on_mesh(mesh: Mesh, function: Callable[..., PyTree], *arguments: Any) -> PyTree:
    """`function(*arguments)` of one seed, whose environments are sharded over a mesh."""
    arrays, static = eqx.partition(arguments, eqx.is_array)

    def on_device(arrays: PyTree, of_envs: None, shared: None) -> tuple[PyTree, None]:
        return function(*eqx.combine(arrays, static)), None

    returned, _ = map_seeds(on_device, mesh, arrays, None, None, has_seeds=False)
    return returned


def num_devices_of_program() -> int:
    """The number of devices of this process that the program that is being traced will run on."""
    return max(1, jax.sharding.get_abstract_mesh().size // jax.process_count())


def largest_divisor(number: int, at_most: int) -> int:
    """The largest number up to `at_most` that divides another."""
    return next(count for count in range(at_most, 0, -1) if number % count == 0)
