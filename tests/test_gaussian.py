import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from brax.training.distribution import NormalTanhDistribution

from gorl._gaussian import (
    entropy,
    entropy_after_tanh,
    log_density,
    log_tanh_slope,
    mean_and_std,
    standard_outputs,
)


def log_slope(value):
    """`log(1 - tanh²)` in float64, by a formula of its own: the logarithm of 1/cosh²."""
    return -2 * np.log(np.cosh(np.float64(value)))


def exact_entropy_after_tanh(mean, std):
    """The entropy of tanh of a Gaussian number, by adaptive quadrature in float64."""

    def integrand(value):
        return scipy.stats.norm.pdf(value, mean, std) * log_slope(value)

    ends = (mean - 12 * std, mean + 12 * std)
    kink = min(max(0.0, ends[0]), ends[1])
    return scipy.stats.norm.entropy(mean, std) + scipy.integrate.quad(integrand, *ends, points=[kink], limit=500)[0]


def test_log_density_against_scipy():
    rng = np.random.default_rng(0)
    value, mean, std = rng.normal(size=(10, 3)), rng.normal(size=(10, 3)), rng.uniform(0.1, 3, (10, 3))
    found = log_density(*(jnp.asarray(array, jnp.float32) for array in (value, mean, std)))
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf(value, mean, std).sum(axis=-1), rtol=1e-4)


def test_entropy_against_scipy():
    std = np.random.default_rng(0).uniform(0.1, 3, (10, 3))
    found = entropy(jnp.asarray(std, jnp.float32))
    np.testing.assert_allclose(found, scipy.stats.norm.entropy(scale=std).sum(axis=-1), rtol=1e-4, atol=1e-5)


def test_outputs_are_a_mean_and_a_clipped_softplus():
    raw = np.array([-100.0, -3.0, 0.0, 2.0, 9.0, 50.0])
    mean, std = mean_and_std(jnp.asarray(np.concatenate([raw, raw]), jnp.float32))
    np.testing.assert_array_equal(mean, raw)
    np.testing.assert_allclose(std, np.clip(np.logaddexp(0, raw) + 1e-3, 1e-3, 10), rtol=1e-6)


def test_standard_outputs_are_those_of_a_standard_gaussian():
    mean, std = mean_and_std(standard_outputs(4))
    np.testing.assert_array_equal(mean, np.zeros(4))
    np.testing.assert_allclose(std, np.ones(4), rtol=1e-6)


def test_log_tanh_slope_against_float64():
    values = np.linspace(-9, 9, 181)
    found = log_tanh_slope(jnp.asarray(values[:, None], jnp.float32))
    np.testing.assert_allclose(found, np.log(1 - np.tanh(values) ** 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [-80.0, -20.0, 20.0, 80.0])
def test_log_tanh_slope_far_from_zero_neither_cancels_nor_overflows(value):
    found, gradient = jax.value_and_grad(log_tanh_slope)(jnp.array([value]))
    # 1 - tanh²(20) is 0 in float64, too.
    np.testing.assert_allclose(found, log_slope(value), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-2 * np.sign(value)], rtol=1e-6)


def test_log_tanh_slope_sums_over_dimensions():
    values = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        log_tanh_slope(jnp.asarray(values, jnp.float32)), log_slope(values).sum(axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize(("std", "tolerance"), [(0.01, 1e-4), (0.1, 1e-4), (0.5, 1e-4), (1.0, 2e-4), (2.0, 5e-3)])
def test_entropy_after_tanh_against_adaptive_quadrature(std, tolerance):
    for mean in (-4.0, -1.0, 0.0, 0.3, 2.0, 6.0):
        found = entropy_after_tanh(jnp.array([mean]), jnp.array([std]))
        np.testing.assert_allclose(found, exact_entropy_after_tanh(mean, std), atol=tolerance)


def test_entropy_after_tanh_against_many_of_brax_estimates():
    mean, std = jnp.array([0.4, -1.5, 0.0]), jnp.array([0.3, 0.8, 1.2])
    distribution = NormalTanhDistribution(3)
    parameters = jnp.concatenate([mean, jnp.log(jnp.expm1(std - 1e-3))])  # Brax adds 1e-3 to a softplus
    estimates = jax.vmap(lambda key: distribution.entropy(parameters, key))(jax.random.split(jax.random.key(0), 50_000))
    standard_error = float(jnp.std(estimates)) / np.sqrt(50_000)
    np.testing.assert_allclose(entropy_after_tanh(mean, std), jnp.mean(estimates), atol=4 * standard_error)


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
def test_the_gradient_of_the_entropy_after_tanh_against_finite_differences(std):
    gradient = jax.grad(lambda mean, std: entropy_after_tanh(mean, std), argnums=(0, 1))
    for mean in (-1.5, 0.0, 0.7):
        by_mean, by_std = gradient(jnp.array([mean]), jnp.array([std]))
        step = 1e-3
        around_mean = [exact_entropy_after_tanh(mean + shift, std) for shift in (-step, step)]
        around_std = [exact_entropy_after_tanh(mean, std + shift) for shift in (-step, step)]
        np.testing.assert_allclose(by_mean, np.diff(around_mean) / (2 * step), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(by_std, np.diff(around_std) / (2 * step), rtol=2e-3, atol=1e-3)
