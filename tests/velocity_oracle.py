"""What the tests of FPO and DPPO share: their policies are a velocity field."""

import functools

import equinox as eqx
import jax
import numpy as np

from gorl._trainable import split_trainable

OBSERVATION_SIZE, ACTION_SIZE = 4, 3

# The programs here take seconds to compile and milliseconds to run.
compiled = functools.partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})


@compiled
def used_encoder(learner, key):
    """An encoder that has seen observations, with weights large enough that it is far from a straight line."""
    encoder_key, noise_key, data_key = jax.random.split(key, 3)
    encoder, _ = moved(learner.fresh_encoder(OBSERVATION_SIZE, ACTION_SIZE, encoder_key), 0.3, noise_key)
    statistics = encoder.statistics.update(2 + 3 * jax.random.normal(data_key, (100, OBSERVATION_SIZE)))
    return eqx.tree_at(lambda e: e.statistics, encoder, statistics)


def moved(encoder, amount, key):
    """The encoder with its weights moved in a random direction, and that direction."""
    trainable, rest = split_trainable(encoder)
    leaves, structure = jax.tree.flatten(trainable)
    keys = jax.random.split(key, len(leaves))
    direction = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    elsewhere = [leaf + amount * d for leaf, d in zip(leaves, direction, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, elsewhere), rest), direction


class NumpyVelocity:
    """The velocity field in float64 and numpy, with its weights in a list that can be moved."""

    def __init__(self, encoder):
        float64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), split_trainable(encoder)[0])
        self.weights = jax.tree.leaves(float64)  # by layer: weight, bias
        self.mean = np.asarray(encoder.statistics.mean, np.float64)
        self.std = np.sqrt(np.asarray(encoder.statistics.variance, np.float64))

    def moved(self, step, direction):
        other = object.__new__(type(self))
        other.mean, other.std = self.mean, self.std
        other.weights = [w + step * np.asarray(d, np.float64) for w, d in zip(self.weights, direction, strict=True)]
        return other

    def velocity(self, observation, point, time):
        frequencies = 2.0 ** np.arange(4)
        embedded = np.concatenate([np.cos(frequencies * time), np.sin(frequencies * time)])
        x = np.concatenate([(np.asarray(observation) - self.mean) / self.std, point, embedded])
        for weight, bias in zip(self.weights[:-2:2], self.weights[1:-2:2], strict=True):
            x = weight @ x + bias
            x = x / (1 + np.exp(-x))
        return 0.25 * (self.weights[-2] @ x + self.weights[-1])
