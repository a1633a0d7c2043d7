import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from gorl._categorical import Bins

BINS = Bins(-10.0, 120.0, 101)


def by_scipy(value):
    """The mass of a Gaussian in each bin, of what lies in any."""
    width = 130 / 100
    edges = -10 + width * (np.arange(102) - 0.5)
    mass = np.diff(scipy.stats.norm.cdf(edges, value, 0.75 * width))
    return mass / mass.sum()


@pytest.mark.parametrize("value", [-9.9, 0.0, 0.4, 37.123, 119.0])
def test_a_value_becomes_the_mass_of_a_gaussian_in_each_bin(value):
    np.testing.assert_allclose(BINS.project(jnp.asarray(value)), by_scipy(value), atol=1e-5)


def test_mass_is_one_everywhere_and_the_mean_is_kept_away_from_the_ends():
    values = jnp.linspace(-12, 125, 400)
    masses = BINS.project(values)
    np.testing.assert_allclose(jnp.sum(masses, axis=-1), 1, atol=1e-5)
    inside = (values > -10 + 4 * BINS.width) & (values < 120 - 4 * BINS.width)
    np.testing.assert_allclose((masses @ BINS.centres)[inside], values[inside], atol=2e-3)


def test_a_value_outside_is_taken_for_the_nearest_that_there_is():
    np.testing.assert_array_equal(BINS.project(jnp.asarray(500.0)), BINS.project(jnp.asarray(120.0)))
    np.testing.assert_array_equal(BINS.clip(jnp.array([-500.0, 3.0, 500.0])), [-10, 3, 120])


def test_the_mean_of_logits_is_that_of_their_softmax():
    logits = np.random.default_rng(0).normal(size=(7, 101))
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        BINS.mean(jnp.asarray(logits, jnp.float32)), weights @ np.linspace(-10, 120, 101), rtol=1e-4
    )


def test_cross_entropy_recovers_a_known_value_function():
    # V(x) = 3 + 2 sin(3 x), seen with noise; logits of Fourier features.
    bins = Bins(0.0, 6.0, 31)
    key, noise_key = jax.random.split(jax.random.key(0))
    points = jax.random.uniform(key, (512,), minval=-1, maxval=1)
    true = 3 + 2 * jnp.sin(3 * points)
    seen = true + 0.3 * jax.random.normal(noise_key, true.shape)
    features = jnp.stack([f(k * points) for k in range(6) for f in (jnp.sin, jnp.cos)], axis=-1)
    optimiser = optax.adam(0.1)

    def loss(weights):
        return jnp.mean(optax.softmax_cross_entropy(features @ weights, bins.project(seen)))

    @eqx.filter_jit
    def fit(weights):
        def step(carry, _):
            weights, state = carry
            updates, state = optimiser.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, optimiser.init(weights)), None, 500)[0][0]

    found = bins.mean(features @ fit(jnp.zeros((12, 31))))
    assert np.sqrt(np.mean((found - true) ** 2)) < 0.15
