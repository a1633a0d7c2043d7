"""Rows that the devices of a mesh share. The tests have two devices, which are cores of a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from gorl._backend import ENVIRONMENTS, all_rows, map_rows, mean_gradient, num_parts, own_rows
from gorl._network import mlp


@pytest.fixture(scope="module")
def on_two():
    """Runs a function on both devices, which share the environments, and returns what each of them returned."""
    mesh = Mesh(np.asarray(jax.devices()), (ENVIRONMENTS,))

    def run(function, *arguments):
        def stacked(*arguments):
            return jax.tree.map(lambda leaf: leaf[None], function(*arguments))

        axis = PartitionSpec(ENVIRONMENTS)
        sharded = jax.shard_map(stacked, mesh=mesh, in_specs=PartitionSpec(), out_specs=axis, check_vma=False)
        return jax.tree.map(np.asarray, jax.jit(sharded)(*arguments))

    return run


def test_each_device_has_half_of_the_rows_and_together_they_have_all(on_two):
    rows = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(on_two(lambda rows: own_rows(rows, 6), rows), rows.reshape(2, 3, 2))
    both = on_two(lambda rows: all_rows(own_rows(rows, 6), 6), rows)
    np.testing.assert_array_equal(both, np.stack([rows, rows]))
    along = on_two(lambda rows: all_rows(own_rows(rows, 6).T, 6, axis=1), rows)
    np.testing.assert_array_equal(along, np.stack([rows.T, rows.T]))


def test_keys_are_rows_too(on_two):
    keys = jax.random.split(jax.random.key(0), 4)
    found = on_two(lambda keys: jax.random.key_data(all_rows(own_rows(keys, 4), 4)), keys)
    np.testing.assert_array_equal(found, np.stack([jax.random.key_data(keys)] * 2))


def test_rows_that_the_devices_do_not_divide_are_on_each(on_two):
    rows = jnp.arange(5.0)
    found = on_two(lambda rows: (own_rows(rows, 5), all_rows(own_rows(rows, 5), 5)), rows)
    for part in found:
        np.testing.assert_array_equal(part, np.stack([rows, rows]))


def test_without_a_mesh_nothing_is_shared():
    rows = jnp.arange(6.0)
    assert num_parts() == 1
    assert own_rows(rows, 6) is rows
    assert all_rows(rows, 6) is rows


@pytest.mark.parametrize("num_rows", [8, 7])
def test_the_gradient_of_a_mean_over_shared_rows_is_that_of_jax(on_two, num_rows):
    network = mlp(3, 1, 16, 2, key=jax.random.key(0))
    inputs, targets = jax.random.normal(jax.random.key(1), (num_rows, 3)), jnp.arange(1.0 * num_rows)
    seen = []

    def loss(network, rows):
        inputs, targets = rows
        seen.append(inputs.shape[0])
        # What a loss maps over its rows must not be shared again.
        error = map_rows(network, inputs, 16)[:, 0] - targets
        return jnp.mean(error**2), {"error": jnp.mean(error)}

    found = on_two(lambda network, rows: mean_gradient(loss, network, rows, 16), network, (inputs, targets))
    assert set(seen) == {4 if num_rows == 8 else 7}
    truth = jax.grad(loss, has_aux=True)(network, (inputs, targets))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_array_equal(ours[0], ours[1])
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-6)


def test_a_function_is_mapped_over_shared_rows(on_two):
    rows, seen = jnp.arange(6.0), []

    def double(row):
        seen.append(row)
        return 2 * row

    np.testing.assert_array_equal(on_two(lambda rows: map_rows(double, rows, 1), rows), np.stack([2 * rows] * 2))
