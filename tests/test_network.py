import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gorl._network import mlp


def weights_and_biases(network):
    return [array for layer in network.layers for array in (layer.weight, layer.bias)]


def test_a_layer_is_that_of_equinox():
    network = mlp(3, 2, 5, 2, key=jax.random.key(0))
    network = jax.tree.map(lambda leaf: leaf + 0.1, network)  # biases that are not zero
    original = eqx.nn.MLP(3, 2, 5, 2, activation=jax.nn.silu, key=jax.random.key(0))
    original = eqx.tree_at(weights_and_biases, original, weights_and_biases(network))
    inputs = jax.random.normal(jax.random.key(1), (7, 3))
    np.testing.assert_allclose(jax.vmap(network)(inputs), jax.vmap(original)(inputs), rtol=1e-5, atol=1e-6)


def test_a_fresh_network_has_weights_of_lecun_and_no_biases():
    network = mlp(300, 4, 300, 1, key=jax.random.key(0), output_scale=0.0)
    first, last = network.layers
    # Uniform, of variance one over the number of inputs.
    np.testing.assert_allclose(np.max(np.abs(first.weight)), np.sqrt(3 / 300), rtol=1e-3)
    np.testing.assert_allclose(np.var(first.weight), 1 / 300, rtol=0.02)
    assert not np.any(last.weight)
    assert not np.any(first.bias)


def test_a_batch_is_one_product_of_matrices_for_each_layer_with_no_transposes_of_what_grows_with_it():
    network = mlp(3, 2, 5, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(network, eqx.is_array)
    program = jax.make_jaxpr(lambda arrays, inputs: jax.vmap(eqx.combine(arrays, static))(inputs))
    equations = program(arrays, jnp.zeros((7, 3))).eqns
    products = [equation for equation in equations if equation.primitive.name == "dot_general"]
    assert [product.outvars[0].aval.shape for product in products] == [(7, 5), (7, 5), (7, 2)]
    transposed = [equation.invars[0].aval.shape for equation in equations if equation.primitive.name == "transpose"]
    assert not [shape for shape in transposed if 7 in shape]
