"""Means and what is around them."""

import warnings

import numpy as np
import pytest

from gorl.internal import interval

# The 97.5 % quantiles of Student's t, from a printed table, by degrees of freedom.
T = {9: 2.262, 14: 2.145, 30: 2.042}


@pytest.fixture(autouse=True)
def no_warnings():
    """Whoever reads a table must not be told of divisions by zero between its lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def numbers(found):
    return np.stack([found.mean, found.low, found.high])


@pytest.mark.parametrize("degrees", T)
def test_the_interval_is_that_of_the_printed_table(degrees):
    values = np.random.default_rng(degrees).normal(500, 20, degrees + 1)
    half = T[degrees] * np.std(values, ddof=1) / np.sqrt(values.size)
    found = interval(values)
    expected = [np.mean(values), np.mean(values) - half, np.mean(values) + half]
    np.testing.assert_allclose(numbers(found), expected, 1e-4)
    assert found.is_confidence
    assert found.name == "95 % interval"


@pytest.mark.parametrize("count", [2, 3, 9])
def test_few_values_have_a_smallest_and_a_largest_instead(count):
    values = np.random.default_rng(count).normal(500, 20, count)
    found = interval(values)
    np.testing.assert_allclose(numbers(found), [np.mean(values), np.min(values), np.max(values)])
    assert not found.is_confidence
    assert found.name == "smallest and largest"


def test_it_holds_the_mean_as_often_as_it_says():
    values = np.random.default_rng(0).normal(7, 3, (20_000, 10))
    found = interval(values)
    assert np.mean((found.low <= 7) & (found.high >= 7)) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("shape", [(5, 7), (12, 11)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_along_an_axis(shape, axis):
    values = np.random.default_rng(0).normal(size=shape)
    one_by_one = np.stack([numbers(interval(one)) for one in (values.T if axis == 0 else values)], axis=-1)
    np.testing.assert_allclose(numbers(interval(values, axis=axis)), one_by_one)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [3, 12])
def test_what_is_not_finite_is_left_out(bad, count):
    clean = np.random.default_rng(1).normal(size=count)
    found = interval(np.array([[*clean, bad], [*clean, bad]]), axis=1)
    np.testing.assert_allclose(numbers(found)[:, 0], numbers(interval(clean)))


def test_one_value_has_no_interval_and_none_has_no_mean():
    for values, expected in (
        ([5.0], (5, np.nan, np.nan)),
        ([5.0, np.nan], (5, np.nan, np.nan)),
        ([np.nan] * 2, [np.nan] * 3),
    ):
        np.testing.assert_array_equal(numbers(interval(np.array(values))), expected)
    many = np.array([5.0] + [np.nan] * 11)
    np.testing.assert_array_equal(numbers(interval(many)), (5, np.nan, np.nan))


def test_single_precision_is_not_felt():
    # A single-precision sum of these is off by more than they differ.
    values = (np.float32(2**24) + np.float32(2) * np.arange(5000, dtype=np.float32)).astype(np.float32)
    found = interval(values)
    assert found.mean == 2**24 + 4999
    half = 1.9604 * np.std(np.float64(values), ddof=1) / 5000**0.5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-4)
