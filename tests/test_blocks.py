import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gorl import _blocks
from gorl._blocks import map_rows, mean_gradient
from gorl._network import perceptron

ROW_SIZE = 1000


def squared_error(network, rows):
    inputs, targets = rows
    errors = jax.vmap(network)(inputs)[:, 0] - targets
    return jnp.mean(errors**2), {"error": jnp.mean(errors), "largest": jnp.mean(jnp.abs(errors))}


def problem(num_rows):
    network_key, input_key, target_key = jax.random.split(jax.random.key(0), 3)
    network = perceptron(3, 1, 16, 2, key=network_key)
    return network, (jax.random.normal(input_key, (num_rows, 3)), jax.random.normal(target_key, (num_rows,)))


# The second is cut into 3 blocks where 2 would not divide it; the third is a prime and stays whole.
@pytest.mark.parametrize(("num_rows", "num_blocks"), [(100, 1), (513, 3), (521, 1), (2048, 8)])
def test_the_gradient_of_a_mean_is_that_of_jax(num_rows, num_blocks):
    network, rows = problem(num_rows)
    assert _blocks._num_blocks(num_rows, ROW_SIZE) == num_blocks
    ours = jax.jit(lambda network, rows: mean_gradient(squared_error, network, rows, ROW_SIZE))(network, rows)
    truth = jax.jit(jax.grad(squared_error, has_aux=True))(network, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, truth)


def test_on_a_cpu_a_large_batch_is_cut_and_elsewhere_it_is_not():
    network, rows = problem(2048)
    gradient = jax.jit(lambda network, rows: mean_gradient(squared_error, network, rows, ROW_SIZE))
    mapped = jax.jit(lambda network, inputs: map_rows(network, inputs, ROW_SIZE))
    for function, arguments in ((gradient, (network, rows)), (mapped, (network, rows[0]))):
        traced = function.trace(*arguments)
        assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
        assert "while" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_gradient_goes_through_vmap():
    network, (inputs, targets) = problem(2048)
    several = (inputs + jnp.arange(3.0)[:, None, None], jnp.stack([targets, 2 * targets, -targets]))
    gradient = jax.jit(lambda rows: mean_gradient(squared_error, network, rows, ROW_SIZE))
    together = jax.vmap(gradient)(several)
    one_by_one = jax.lax.map(gradient, several)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, one_by_one)


@pytest.mark.parametrize("num_rows", [10, 521, 2048])
def test_mapping_rows_is_vmap(num_rows):
    network, (inputs, _) = problem(num_rows)
    mapped = jax.jit(lambda network, inputs: map_rows(network, inputs, ROW_SIZE))(network, inputs)
    np.testing.assert_allclose(mapped, jax.vmap(network)(inputs), rtol=1e-5, atol=1e-6)
