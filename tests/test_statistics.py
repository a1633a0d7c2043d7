import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gorl import RunningStatistics


def updated(batches):
    update = eqx.filter_jit(RunningStatistics.update)
    statistics = RunningStatistics.empty(batches[0].shape[-1])
    for batch in batches:
        statistics = update(statistics, jnp.asarray(batch, jnp.float32))
    return statistics


def test_many_updates_agree_with_numpy_on_everything_seen():
    rng = np.random.default_rng(0)
    sizes = [1, 7, 64, 300]
    batches = [rng.normal(rng.normal(0, 5, 3), rng.uniform(0.1, 10, 3), (sizes[i % len(sizes)], 3)) for i in range(300)]
    statistics = updated(batches)
    everything = np.concatenate(batches)
    assert statistics.count == len(everything)
    np.testing.assert_allclose(statistics.mean, everything.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics.variance, everything.var(axis=0), rtol=1e-5)


def test_a_batch_of_several_axes_counts_every_vector():
    batch = jax.random.normal(jax.random.key(0), (5, 6, 3))
    statistics = RunningStatistics.of(batch)
    assert statistics.count == 30
    np.testing.assert_allclose(statistics.mean, np.mean(batch, axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(statistics.variance, np.var(batch, axis=(0, 1)), rtol=1e-5)


def test_empty_statistics_change_nothing():
    vectors = 100 * jax.random.normal(jax.random.key(0), (10, 3))
    np.testing.assert_array_equal(RunningStatistics.empty(3).normalise(vectors), vectors)


def test_normalised_data_have_zero_mean_and_unit_variance():
    batch = jnp.array([-3.0, 40.0]) + jnp.array([0.1, 20.0]) * jax.random.normal(jax.random.key(0), (1000, 2))
    normalised = RunningStatistics.of(batch).normalise(batch)
    np.testing.assert_allclose(np.mean(normalised, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.std(normalised, axis=0), 1, rtol=1e-4)


def test_millions_of_vectors_far_from_zero_keep_their_accuracy():
    batches = 1e3 + np.random.default_rng(0).normal(size=(16, 4096, 2))
    batches = jnp.asarray(batches, jnp.float32)

    @jax.jit
    def updates(statistics):
        def step(statistics, i):
            return statistics.update(batches[i % 16]), None

        return jax.lax.scan(step, statistics, jnp.arange(1600))[0]  # 6.6 million vectors

    statistics = updates(RunningStatistics.empty(2))
    seen = np.asarray(batches, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(statistics.mean, seen.mean(axis=0), atol=0.01)  # a hundredth of a standard deviation
    np.testing.assert_allclose(statistics.variance, seen.var(axis=0), rtol=1e-3)


def test_the_standard_deviation_does_not_decay_with_the_number_of_updates():
    # GoRL's public code replaces the sum of squares in each update instead of adding to it.
    batches = np.random.default_rng(0).normal(2.0, 3.0, (300, 256, 1))
    early, late = updated(batches[:3]), updated(batches)
    np.testing.assert_allclose(np.sqrt(early.variance), 3.0, rtol=0.1)
    np.testing.assert_allclose(np.sqrt(late.variance), 3.0, rtol=0.02)


def test_a_constant_coordinate_is_not_blown_up():
    constant = np.full((64, 1), 0.1)  # no binary fraction, so that sums of it round
    statistics = updated([constant] * 50)
    np.testing.assert_allclose(statistics.normalise(jnp.array([0.1])), 0, atol=1e-3)
    assert jnp.abs(statistics.normalise(jnp.array([0.11]))) < 10.1  # the least standard deviation is 1e-3
