"""Means and their confidence intervals."""

import warnings

import numpy as np
import pytest

from gorl_cli._interval import mean_interval

# The 97.5 % quantiles of Student's t, from a printed table, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}


@pytest.fixture(autouse=True)
def no_warnings():
    """Whoever reads a table must not be told of divisions by zero between its lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("degrees", T)
def test_the_interval_is_that_of_the_printed_table(degrees):
    values = np.random.default_rng(degrees).normal(500, 20, degrees + 1)
    mean, low, high = mean_interval(values)
    half = T[degrees] * np.std(values, ddof=1) / np.sqrt(values.size)
    np.testing.assert_allclose(
        [mean, low, high], [np.mean(values), np.mean(values) - half, np.mean(values) + half], 1e-4
    )


def test_by_hand():
    # Mean 2, variance 1, so that the standard error is 1 / sqrt(3).
    np.testing.assert_allclose(mean_interval(np.array([1, 2, 3])), (2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), 1e-4)


def test_it_holds_the_mean_as_often_as_it_says():
    values = np.random.default_rng(0).normal(7, 3, (20_000, 4))
    _, low, high = mean_interval(values)
    assert np.mean((low <= 7) & (high >= 7)) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_along_an_axis(axis):
    values = np.random.default_rng(0).normal(size=(5, 7))
    found = np.stack(mean_interval(values, axis=axis), axis=-1)
    one_by_one = np.stack([mean_interval(one) for one in (values.T if axis == 0 else values)])
    np.testing.assert_allclose(found, one_by_one)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out(bad):
    values = np.array([[1.0, bad, 3.0, 8.0], [2.0, 4.0, bad, bad]])
    found = np.stack(mean_interval(values, axis=1))
    np.testing.assert_allclose(found[:, 0], mean_interval(np.array([1.0, 3.0, 8.0])))
    np.testing.assert_allclose(found[:, 1], mean_interval(np.array([2.0, 4.0])))


def test_one_value_has_no_interval_and_none_has_no_mean():
    np.testing.assert_array_equal(mean_interval(np.array([5.0])), (5, np.nan, np.nan))
    np.testing.assert_array_equal(mean_interval(np.array([5.0, np.nan])), (5, np.nan, np.nan))
    np.testing.assert_array_equal(mean_interval(np.array([np.nan, np.nan])), (np.nan, np.nan, np.nan))


def test_single_precision_is_not_felt():
    # A single-precision sum of these is off by more than they differ.
    values = (np.float32(2**24) + np.float32(2) * np.arange(5000, dtype=np.float32)).astype(np.float32)
    mean, low, high = mean_interval(values)
    assert mean == 2**24 + 4999
    assert (high - low) / 2 == pytest.approx(1.9604 * np.std(np.float64(values), ddof=1) / 5000**0.5, rel=1e-4)
