"""Runs on several devices. The tests have two, which are cores of a CPU."""

import jax
import numpy as np
import pytest

from gorl._backend import seed_sharding


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
