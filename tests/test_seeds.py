import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl
from gorl._iterate import state_shapes


@pytest.fixture(scope="module")
def single(make_policy):
    """What a run over one seed leaves."""
    metrics = {"value_loss": jnp.zeros(4)}
    curve = gorl.Curve(jnp.arange(4), jnp.zeros(4, jnp.int32), jnp.zeros((4, 5)), metrics, steps_per_iteration=10)
    fits = gorl.Fit(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return gorl.Result(make_policy(3, 2), jnp.zeros(5), curve, fits, *[jnp.zeros((), jnp.int32)] * 2)


@pytest.fixture(scope="module")
def several(single):
    """What a run over three seeds leaves, each a little different from the others."""

    def shifted(leaf, seed):
        return leaf if leaf.dtype == bool else leaf + jnp.asarray(seed, leaf.dtype)

    return jax.tree.map(lambda leaf: jnp.stack([shifted(leaf, seed) for seed in range(3)]), single)


@pytest.mark.parametrize("part", [lambda result: result, lambda result: result.policy, lambda result: result.curve])
def test_one_seed_of_several(single, several, assert_same, part):
    assert_same(gorl.of_seed(part(several), 0), part(single))
    last = gorl.of_seed(part(several), np.int64(2))
    assert_same(last, jax.tree.map(lambda leaf: leaf[2], part(several)))
    assert jax.tree.structure(last) == jax.tree.structure(part(single))
    assert float(jax.tree.leaves(last)[0].ravel()[0]) != float(jax.tree.leaves(part(single))[0].ravel()[0])


def test_one_seed_of_a_state(tiny, assert_same):
    keys = jax.random.split(jax.random.key(0), 3)
    like = state_shapes(tiny, keys)

    def filled(leaf):
        if leaf.dtype != keys.dtype:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.broadcast_to(keys.reshape(3, *[1] * (leaf.ndim - 1)), leaf.shape)

    state = gorl.of_seed(jax.tree.map(filled, like), 1)
    assert state.key == keys[1]
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, state_shapes(tiny, keys[1]))
    with pytest.raises(gorl.InputError, match="this TrainState is of one seed already: take it as it is"):
        gorl.of_seed(state, 0)


@pytest.mark.parametrize("kind", ["Result", "Policy", "Curve"])
def test_what_is_of_one_seed_is_not_taken_apart(single, kind):
    # A curve has an axis even so, of evaluations.
    parts = {"Result": single, "Policy": single.policy, "Curve": single.curve}
    with pytest.raises(gorl.InputError, match=f"this {kind} is of one seed already: take it as it is"):
        gorl.of_seed(parts[kind], 0)


@pytest.mark.parametrize("seed", [3, -1])
def test_a_seed_that_is_not_there(several, seed):
    # JAX itself takes the nearest.
    with pytest.raises(gorl.InputError, match=f"no seed {seed} in this Result: it holds 0 to 2"):
        gorl.of_seed(several, seed)


def test_values_of_a_batch_and_their_seeds_are_taken_one_axis_after_the_other(several, assert_same):
    grid = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), several)
    assert_same(gorl.of_seed(gorl.of_seed(grid, 1), 2), gorl.of_seed(several, 2))


@pytest.mark.usefixtures("unchecked")
def test_nothing_else_has_seeds(several):
    with pytest.raises(gorl.InputError, match=r"takes a .*TrainState, not Fit: give one of these"):
        gorl.of_seed(several.fits, 0)  # whose axis may be of refinements
    with pytest.raises(gorl.InputError, match=r"a whole number from 0 to 2, not 0\.5"):
        gorl.of_seed(several, 0.5)
