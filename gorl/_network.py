"""The networks of policies, value functions and decoders."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._types import RandomKey


class _SiLU(eqx.Module):
    """`jax.nn.silu` as a module without leaves: a function would be a leaf that `jit` and `vmap` cannot return."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.silu(x)


class _Linear(eqx.nn.Linear):
    """`equinox.nn.Linear` with the vector on the left, which XLA turns into `inputs @ weight.T` for a batch.

    With the vector on the right it becomes `weight @ inputs.T`, whose transpose costs a CPU a tenth of a gradient.
    """

    def __call__(self, x: Float[Array, " inputs"], *, key: RandomKey | None = None) -> Float[Array, " outputs"]:
        assert self.bias is not None
        return x @ self.weight.T + self.bias


class _NormalisedLinear(eqx.Module):
    """A linear layer with a layer norm after it, which has the bias.

    ??? cite "Reference"

        Ba et al. (2016), *Layer Normalization*, equation (4).
    """

    weight: Float[Array, "outputs inputs"]
    bias: Float[Array, " outputs"]
    scale: Float[Array, " outputs"]

    def __call__(self, x: Float[Array, " inputs"], *, key: RandomKey | None = None) -> Float[Array, " outputs"]:
        outputs = x @ self.weight.T
        centred = outputs - jnp.mean(outputs)
        return self.scale * centred * jax.lax.rsqrt(jnp.mean(centred**2) + 1e-6) + self.bias


def mlp(
    input_size: int,
    output_size: int,
    width: int,
    depth: int,
    *,
    key: RandomKey,
    output_scale: float = 1.0,
    normalised: bool = False,
    is_hidden: bool = False,
) -> eqx.nn.MLP:
    """A multilayer perceptron with SiLU activations, LeCun-uniform weights and zero biases.

    **Arguments:**

    - `input_size`, `output_size`: the lengths of input and output.
    - `width`: the length of each hidden layer.
    - `depth`: the number of hidden layers.
    - `key`: decides the initial weights.
    - `output_scale`: multiplies the initial weights of the last layer; with 0 the network starts at zero.
    - `normalised`: whether a layer norm follows each hidden layer.
    - `is_hidden`: whether the last layer is a hidden one as well, with norm and activation.
    """
    final_activation = _SiLU() if is_hidden else eqx.nn.Identity()
    network = eqx.nn.MLP(
        input_size, output_size, width, depth, activation=_SiLU(), final_activation=final_activation, key=key
    )
    lecun_uniform = jax.nn.initializers.lecun_uniform(in_axis=1, out_axis=0)
    keys = jax.random.split(key, len(network.layers))
    scales = [1.0] * depth + [output_scale]
    weights = [
        scale * lecun_uniform(layer_key, layer.weight.shape)
        for layer_key, layer, scale in zip(keys, network.layers, scales, strict=True)
    ]
    num_normalised = (depth + is_hidden) * normalised
    layers = [
        _normalised_linear(weight) if index < num_normalised else _linear(weight)
        for index, weight in enumerate(weights)
    ]
    return eqx.tree_at(lambda mlp: mlp.layers, network, tuple(layers))


def _linear(weight: Float[Array, "outputs inputs"]) -> _Linear:
    """A layer with this weight and a bias of zero."""
    outputs, inputs = weight.shape
    layer = eqx.filter_eval_shape(_Linear, inputs, outputs, key=jax.random.key(0))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, jnp.zeros(outputs)))


def _normalised_linear(weight: Float[Array, "outputs inputs"]) -> _NormalisedLinear:
    outputs, _ = weight.shape
    return _NormalisedLinear(weight, jnp.zeros(outputs), jnp.ones(outputs))


def embed_time(time: Float[Array, ""], num_frequencies: int) -> Float[Array, " embedding"]:
    """The embedding of the time of a flow or a diffusion: cosines and sines of `2^k time` for `k = 0, 1, ..`."""
    angles = time * np.exp2(np.arange(num_frequencies, dtype=np.float32))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


class ConditionalField(eqx.Module):
    """A learned vector field over actions, given an observation and one or more times: a velocity or a noise.

    **Arguments:**

    - `network`: takes the normalised observation, the point and the embedding of each time, in this order.
    - `num_frequencies`: frequencies of the embedding of a time.
    - `output_scale`: multiplies the output of the network.
    """

    network: eqx.nn.MLP
    num_frequencies: int = eqx.field(static=True)
    output_scale: float = eqx.field(static=True, default=1.0)

    @staticmethod
    def init(
        observation_size: int,
        action_size: int,
        width: int,
        depth: int,
        num_frequencies: int,
        *,
        key: RandomKey,
        output_scale: float = 1.0,
        initial_scale: float = 1.0,
        num_times: int = 1,
    ) -> "ConditionalField":
        """A fresh field of `num_times` times; `initial_scale` multiplies the initial weights of the last layer, and
        only those."""
        input_size = observation_size + action_size + num_times * 2 * num_frequencies
        network = mlp(input_size, action_size, width, depth, key=key, output_scale=initial_scale)
        return ConditionalField(network, num_frequencies, output_scale)

    def __call__(
        self, observation: Float[Array, " observation"], point: Float[Array, " action"], *times: Float[Array, ""]
    ) -> Float[Array, " action"]:
        """The vector at `point` and `times`, given a normalised observation."""
        embedded = [embed_time(time, self.num_frequencies) for time in times]
        inputs = jnp.concatenate([observation, point, *embedded])
        return self.output_scale * self.network(inputs)
