"""Runs on several devices. The tests have two, which are cores of a CPU."""

import types

import jax
import numpy as np
import pytest

from gorl._backend import memory_for_seeds, seed_sharding
from gorl._backend._machine import memory_of_machine


def test_there_are_two_devices():
    assert len(jax.local_devices()) == 2  # otherwise no other test here, nor of a run over them, says anything


@pytest.mark.parametrize(("number", "count"), [(1, 1), (2, 2), (3, 1), (4, 2), (9, 1), (200, 2)])
def test_each_device_takes_as_many(number, count):
    devices = seed_sharding(number)
    if count == 1:
        assert devices is None
    else:
        placed = jax.device_put(np.arange(number), devices)
        assert [len(shard.data) for shard in placed.addressable_shards] == [number // count] * count


def test_a_device_that_was_chosen_has_them_all():
    with jax.default_device(jax.local_devices()[1]):
        assert seed_sharding(2) is None


def test_devices_of_a_cpu_share_the_memory_of_the_machine():
    assert memory_for_seeds(1) == memory_for_seeds(2) == memory_of_machine()


def test_devices_with_memories_of_their_own_add_them_up(monkeypatch):
    gpus = [types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 2**34, "bytes_in_use": 0}) for _ in range(3)]
    sharding = types.SimpleNamespace(device_set=gpus)
    monkeypatch.setattr("gorl._backend._sharding.seed_sharding", lambda num_seeds: sharding)
    assert memory_for_seeds(6) == 3 * 2**34
