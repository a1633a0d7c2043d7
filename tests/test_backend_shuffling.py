"""Orders for minibatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gorl._backend import shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000, 8192, 500_000, 600_000])
def test_every_position_is_there_once(size):
    order = shuffle(jax.random.key(0), size)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_every_order_of_a_few_is_equally_likely():
    orders = jax.vmap(lambda key: shuffle(key, 4))(jax.random.split(jax.random.key(1), 24_000))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert counts.size == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_each_minibatch_has_as_many_from_every_part_as_chance_says():
    # The largest size that is ordered by one sort, where most positions share their random bits.
    size, batch, parts = 2**19, 8192, 16
    order = np.asarray(shuffle(jax.random.key(2), size))
    of_part = order.reshape(-1, batch) * parts // size
    counts = np.stack([np.bincount(row, minlength=parts) for row in of_part])
    # A hypergeometric draw: its variance is a little less than a multinomial's.
    expected = batch / parts
    variance = expected * (1 - 1 / parts) * (size - batch) / (size - 1)
    statistic = np.sum((counts - expected) ** 2) / variance
    assert scipy.stats.chi2(size // batch * (parts - 1)).sf(statistic) > 1e-3
    assert scipy.stats.chi2(size // batch * (parts - 1)).cdf(statistic) > 1e-3  # nor are they more even than chance
    assert not np.array_equal(order, np.asarray(shuffle(jax.random.key(3), size)))
