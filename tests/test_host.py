"""Python functions that compiled programs call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gorl import _host

shapes = []  # of the numbers, a call each


def multiply(attributes, inputs, outputs):
    shapes.append(inputs[0].shape)
    if attributes["factor"] == 13:
        raise ValueError("thirteen is refused")
    outputs[0][...] = inputs[0] * attributes["factor"]
    outputs[1][...] = ~inputs[1]


_host.register("gorl_test_multiply", multiply)


def called(numbers, flags, factor=3):
    outputs = [jax.ShapeDtypeStruct(numbers.shape, numbers.dtype), jax.ShapeDtypeStruct(flags.shape, flags.dtype)]
    return _host.call("gorl_test_multiply", [numbers, flags], outputs, factor=factor)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 3)])
def test_the_function_reads_and_fills_arrays_of_the_program(dtype, shape):
    numbers = jnp.arange(np.prod(shape, dtype=int), dtype=dtype).reshape(shape)
    flags = numbers > 1
    found = jax.jit(called)(numbers, flags)
    np.testing.assert_array_equal(found[0], 3 * np.asarray(numbers))
    np.testing.assert_array_equal(found[1], ~np.asarray(flags))


def test_a_batch_is_one_call():
    numbers, flags = jnp.arange(12.0).reshape(2, 2, 3), jnp.zeros(4, bool)
    shapes.clear()
    found = jax.block_until_ready(jax.jit(jax.vmap(jax.vmap(called, (0, None)), (0, None)))(numbers, flags))
    assert shapes == [(2, 2, 3)]
    np.testing.assert_array_equal(found[0], 3 * np.asarray(numbers))
    assert found[1].shape == (2, 2, 4)
    assert found[1].all()


def test_what_the_function_raises_is_raised_by_the_program():
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: thirteen is refused"):
        jax.block_until_ready(jax.jit(called, static_argnames="factor")(jnp.ones(2), jnp.ones(2, bool), factor=13))


def test_programs_are_kept_in_the_compilation_cache(tmp_path):
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    from jax.experimental.compilation_cache import compilation_cache

    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.jit(lambda numbers, flags: called(numbers + 5, flags))(jnp.ones(7), jnp.ones(7, bool))
        assert [path for path in tmp_path.iterdir() if "lambda" in path.name]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
