"""Runs on several devices. The tests have two, which are cores of a CPU."""

import types

import jax
import numpy as np
import pytest

from gorl._backend import default_mesh, memory_of, shardings, with_both_axes
from gorl._backend._machine import memory_of_machine


def test_there_are_two_devices():
    assert len(jax.local_devices()) == 2  # otherwise no other test here, nor of a run over them, says anything


@pytest.mark.parametrize(("number", "count"), [(1, 1), (2, 2), (3, 1), (4, 2), (9, 1), (200, 2)])
def test_each_device_takes_as_many_seeds(number, count):
    mesh = default_mesh(number, 16)
    if count == 1:
        assert mesh is None
    else:
        placed = jax.device_put(np.arange(number), shardings(mesh, has_seeds=True)[0])
        assert [len(shard.data) for shard in placed.addressable_shards] == [number // count] * count


@pytest.mark.parametrize(
    ("num_seeds", "num_envs", "shape"),
    [(1, 16, (1, 8)), (2, 16, (2, 4)), (3, 16, (3, 2)), (16, 16, (8, 1)), (1, 6, (1, 6)), (5, 7, (5, 1))],
)
def test_gpus_that_are_left_share_the_environments(monkeypatch, num_seeds, num_envs, shape):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    assert default_mesh(num_seeds, num_envs).devices.shape == shape


def test_a_device_that_was_chosen_has_them_all():
    with jax.default_device(jax.local_devices()[1]):
        assert default_mesh(2, 16) is None


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [((2,), ("envs",), (1, 2)), ((2,), ("seeds",), (2, 1)), ((1, 2), ("envs", "seeds"), (2, 1))],
)
def test_a_mesh_gets_the_axis_that_it_lacks(shape, axes, expected):
    mesh = with_both_axes(jax.make_mesh(shape, axes))
    assert mesh.axis_names == ("seeds", "envs")
    assert mesh.devices.shape == expected


def test_devices_of_a_cpu_share_the_memory_of_the_machine():
    assert memory_of(None) == memory_of(default_mesh(2, 16)) == memory_of_machine()


def test_devices_with_memories_of_their_own_add_them_up(unchecked):
    gpus = np.asarray(
        [types.SimpleNamespace(process_index=0, memory_stats=lambda: {"bytes_limit": 2**34}) for _ in range(3)]
    )
    assert memory_of(types.SimpleNamespace(devices=gpus)) == 3 * 2**34
