import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gorl._backend import _batching
from gorl._backend._batching import map_rows, mean_gradient, sequential_vmap
from gorl._network import mlp

ROW_SIZE = 1000


def squared_error(network, rows):
    inputs, targets = rows
    errors = jax.vmap(network)(inputs)[:, 0] - targets
    return jnp.mean(errors**2), {"error": jnp.mean(errors), "largest": jnp.mean(jnp.abs(errors))}


def problem(num_rows):
    network_key, input_key, target_key = jax.random.split(jax.random.key(0), 3)
    network = mlp(3, 1, 16, 2, key=network_key)
    return network, (jax.random.normal(input_key, (num_rows, 3)), jax.random.normal(target_key, (num_rows,)))


# The second is cut into 3 blocks where 2 would not divide it; the third is a prime and stays whole.
@pytest.mark.parametrize(("num_rows", "num_blocks"), [(100, 1), (513, 3), (521, 1), (2048, 8)])
def test_the_gradient_of_a_mean_is_that_of_jax(num_rows, num_blocks):
    network, rows = problem(num_rows)
    assert _batching._num_blocks(num_rows, ROW_SIZE) == num_blocks
    ours = jax.jit(lambda network, rows: mean_gradient(squared_error, network, rows, ROW_SIZE))(network, rows)
    truth = jax.jit(jax.grad(squared_error, has_aux=True))(network, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, truth)


def test_on_a_cpu_large_things_are_cut_and_elsewhere_they_are_not(monkeypatch):
    network, rows = problem(2048)

    def programs():
        yield jax.make_jaxpr(lambda rows: mean_gradient(squared_error, network, rows, ROW_SIZE))(rows)
        yield jax.make_jaxpr(lambda inputs: map_rows(network, inputs, ROW_SIZE))(rows[0])
        yield jax.make_jaxpr(jax.vmap(sequential_vmap(jax.vmap(network))))(rows[0].reshape(2, 1024, 3))

    assert all("scan" in str(program) for program in programs())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not any("scan" in str(program) for program in programs())


def test_in_turn_is_vmap_of_whatever_has_an_axis():
    network, (inputs, _) = problem(6)
    several = jax.vmap(lambda scale: jax.tree.map(lambda leaf: scale * leaf, network))(jnp.arange(1.0, 4.0))

    def function(network, inputs, name):
        assert name == "static"
        return {"sum": jnp.sum(jax.vmap(network)(inputs)), "key": jax.random.key(0)}

    for axes in ((0, None, None), (0, 0, None)):
        arguments = (several, inputs if axes[1] is None else inputs.reshape(3, 2, 3), "static")
        ours = jax.vmap(sequential_vmap(function), in_axes=axes)(*arguments)
        truth = jax.vmap(function, in_axes=axes)(*arguments)
        np.testing.assert_allclose(ours["sum"], truth["sum"], rtol=1e-5)
        assert ours["key"].shape == (3,)
    alone = sequential_vmap(function)(network, inputs, "static")
    np.testing.assert_allclose(alone["sum"], function(network, inputs, "static")["sum"], rtol=1e-5)


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
