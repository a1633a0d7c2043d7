"""The multilayer perceptron behind every policy, value function and decoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import RandomKey


class _SiLU(eqx.Module):
    """`jax.nn.silu` as a module without leaves: a function would be a leaf that `jit` and `vmap` cannot return."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.silu(x)


def perceptron(
    input_size: int,
    output_size: int,
    width: int,
    depth: int,
    *,
    key: RandomKey,
    output_scale: float = 1.0,
) -> eqx.nn.MLP:
    """A multilayer perceptron with SiLU activations, LeCun-uniform weights and zero biases.

    **Arguments:**

    - `input_size`, `output_size`: the lengths of the vectors that go in and come out.
    - `width`: the length of each hidden layer.
    - `depth`: the number of hidden layers.
    - `key`: decides the initial weights.
    - `output_scale`: multiplies the initial weights of the last layer; with 0 the network starts at zero.
    """
    network = eqx.nn.MLP(
        input_size, output_size, width, depth, activation=_SiLU(), final_activation=eqx.nn.Identity(), key=key
    )
    lecun_uniform = jax.nn.initializers.lecun_uniform(in_axis=1, out_axis=0)
    keys = jax.random.split(key, len(network.layers))
    scales = [1.0] * depth + [output_scale]
    weights = [
        scale * lecun_uniform(layer_key, layer.weight.shape)
        for layer_key, layer, scale in zip(keys, network.layers, scales, strict=True)
    ]
    biases = [jnp.zeros(layer.out_features) for layer in network.layers]
    network = eqx.tree_at(lambda mlp: [layer.weight for layer in mlp.layers], network, weights)
    return eqx.tree_at(lambda mlp: [layer.bias for layer in mlp.layers], network, biases)
