"""Decoders that are fitted to demonstrations, and runs that begin with one."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl

FITTED = {
    "decoder": gorl.FlowMatching(width=32, depth=2, num_steps=10),
    "refinement": gorl.Refinement(
        num_episodes=10, num_validation_episodes=1, batch_size=256, num_epochs=40, patience=40, learning_rate=3e-3
    ),
}


def of(observations, actions, lengths):
    return gorl.Demonstrations(np.asarray(observations, np.float32), np.asarray(actions, np.float32), lengths)


def draws(policy, count=1000):
    """Actions at the origin."""
    keys = jax.random.split(jax.random.key(9), count)
    return np.asarray(jax.vmap(lambda key: policy(jnp.zeros(policy.observation_size), key))(keys))


@pytest.fixture(scope="module")
def two_ways():
    """Half of the demonstrators go to the left, half to the right, whatever they see."""
    generator = np.random.default_rng(0)
    to_the_right = np.repeat(np.arange(40) % 2, 50)[:, None] * 2 - 1.0
    return of(generator.normal(size=(2000, 2)), np.hstack([0.7 * to_the_right, np.zeros((2000, 1))]), (50,) * 40)


@pytest.fixture(scope="module")
def fitted(tiny, two_ways):
    """The config, the policy, and how its regression went."""
    config = gorl.replace(tiny, FITTED)
    return config, *gorl.fit_demonstrations(config, two_ways, jax.random.key(0))


def test_draws_go_both_ways_and_nowhere_between(fitted):
    drawn = draws(fitted[1])
    assert 0.45 < np.mean(drawn[:, 0] > 0) < 0.55
    assert np.mean(np.abs(drawn[:, 0]) < 0.35) < 0.08  # a continuous map has to cross
    assert np.abs(np.median(np.abs(drawn[:, 0])) - 0.7) < 0.1
    assert np.abs(np.median(drawn[:, 1])) < 0.1


def test_its_latents_are_normal_whatever_it_sees(fitted):
    encoder = fitted[1].encoder
    for observation in (jnp.zeros(2), jnp.asarray([3.0, -7.0])):
        mean, std = encoder.distribution(observation)
        np.testing.assert_allclose(mean, 0, atol=1e-6)
        np.testing.assert_allclose(std, 1, atol=1e-6)


def test_the_curve_has_the_loss_that_chose_the_decoder(fitted):
    _, _, fit, curve = fitted
    held_out = np.asarray(curve.validation_loss)
    epochs = int(fit.num_epochs)
    assert np.isfinite(held_out[:epochs]).all()
    assert np.isnan(held_out[epochs:]).all()
    assert np.min(held_out[:epochs]) == fit.validation_loss
    assert curve.training_loss[epochs - 1] == fit.training_loss
    assert held_out[epochs - 1] < 0.7 * held_out[0]


def test_an_action_at_its_limit_is_fitted(tiny):
    data = of(np.zeros((200, 2)), np.tile([1.0, -1.0], (200, 1)), (100, 100))
    policy, fit, _ = gorl.fit_demonstrations(gorl.replace(tiny, FITTED), data, jax.random.key(0))
    assert np.isfinite(fit.validation_loss)
    drawn = draws(policy)
    assert np.median(drawn[:, 0]) > 0.99
    assert np.median(drawn[:, 1]) < -0.99


def test_one_episode_in_ten_is_held_out_whole_and_from_the_middle(tiny):
    # Of twenty episodes of different lengths, the sixth and the sixteenth differ from all others.
    lengths = tuple(range(10, 30))
    odd = np.repeat(np.isin(np.arange(20), (5, 15)), lengths)
    action = np.where(odd, 0.9, -0.9)[:, None] * np.ones(2)
    data = of(np.zeros((len(odd), 2)), action, lengths)
    config = gorl.replace(tiny, FITTED)
    _, fit, curve = gorl.fit_demonstrations(config, data, jax.random.key(0))
    # What is fitted has no episode that was held out, and they are far from it.
    assert np.min(curve.training_loss) < 0.7 * fit.validation_loss
    one_way = of(np.zeros((len(odd), 2)), np.full((len(odd), 2), -0.9), lengths)
    _, other, other_curve = gorl.fit_demonstrations(config, one_way, jax.random.key(0))
    np.testing.assert_allclose(other_curve.training_loss, curve.training_loss, rtol=1e-4)
    assert other.validation_loss < 0.7 * fit.validation_loss


def test_it_is_a_pure_function_under_vmap(tiny, two_ways, assert_same):
    small = gorl.replace(tiny, {**FITTED, "refinement.num_epochs": 2})
    keys = jax.random.split(jax.random.key(3), 2)
    together = eqx.filter_vmap(lambda key: gorl.fit_demonstrations(small, two_ways, key)[1])(keys)
    apart = [gorl.fit_demonstrations(small, two_ways, key)[1] for key in keys]
    np.testing.assert_allclose(together.validation_loss, [fit.validation_loss for fit in apart], rtol=1e-4)
    again = gorl.fit_demonstrations(small, two_ways, keys[0])[1]
    assert_same(again, apart[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"observations": np.zeros((20, 3))}, "have observations of size 3, and those of the environment have size 2"),
        ({"actions": np.zeros((20, 1))}, "have actions of size 1, and those of the environment have size 2"),
        (
            {"observations": np.zeros((19, 2)), "actions": np.zeros((19, 2))},
            r"the shape \(19, 2\), and the episodes have 20 steps",
        ),
        ({"episode_lengths": (20,)}, "have 1 episode: give two or more"),
        ({"episode_lengths": (20, 0)}, "an episode without a step"),
        ({"observations": np.full((20, 2), np.nan)}, "20 steps .* have observations that are not finite"),
        (
            {"actions": np.where(np.arange(20)[:, None] == 7, 1.5, 0.5) * np.ones(2)},
            r"1 step \(the first is number 7, counted from 0\) .* outside of \[-1, 1\], the largest 1\.5",
        ),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(tiny, changes, sentence):
    data = dataclasses.replace(of(np.zeros((20, 2)), np.zeros((20, 2)), (10, 10)), **changes)
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.fit_demonstrations(tiny, data, jax.random.key(0))


def test_a_method_without_a_decoder_is_refused(two_ways):
    with pytest.raises(gorl.InputError, match=r"no decoder to fit .* such as gorl-flow"):
        gorl.fit_demonstrations(gorl.preset("MultiGoal", method="ppo"), two_ways, jax.random.key(0))


# --- Runs that begin with a decoder. ---


@pytest.fixture(scope="module")
def given(fitted):
    """A config that begins with the decoder, and the decoder."""
    config, policy, _, _ = fitted
    return gorl.replace(
        config, {"starts_fitted": True, "refinement": gorl.Refinement(16, 1, 2, 4, False, 64, 2)}
    ), policy


def test_the_first_stage_acts_through_the_decoder(given, tiny, assert_same):
    config, policy = given
    (_, state), *_ = gorl.iterate(config, jax.random.key(1), decoder=policy.decoder)
    best = state.best.policy
    assert bool(best.decoder.fitted)
    assert_same(best.decoder.decoder, policy.decoder.decoder)
    # At N(0, I) it acts as the fitted policy does.
    observation = jnp.asarray([0.3, -0.4])
    np.testing.assert_allclose(best.mode(observation), policy.mode(observation), atol=1e-6)
    (_, state), *_ = gorl.iterate(tiny, jax.random.key(1))
    assert not bool(state.best.policy.decoder.fitted)


def test_a_refinement_replaces_it_and_without_one_no_bit_of_it_changes(given, assert_same):
    config, policy = given
    refined = gorl.train(config, jax.random.key(1), decoder=policy.decoder.decoder)
    assert not eqx.tree_equal(refined.policy.decoder.decoder, policy.decoder.decoder)
    frozen = gorl.replace(config, {"stage_steps": (800,)})
    steered = gorl.train(frozen, jax.random.key(1), decoder=policy.decoder)
    assert_same(steered.policy.decoder.decoder, policy.decoder.decoder)
    assert not eqx.tree_equal(steered.policy.encoder.network, policy.encoder.network)


def test_a_run_goes_on_bit_for_bit_without_being_given_it_again(given, tmp_path, assert_same):
    config, policy = given
    states = [state for _, state in gorl.iterate(config, jax.random.key(1), decoder=policy.decoder)]
    gorl.save_state(tmp_path / "state.eqx", states[2], config)
    state, _ = gorl.load_state(tmp_path / "state.eqx", config)
    *_, (_, last) = gorl.iterate(config, state)
    assert_same(last, states[-1])
    with pytest.raises(gorl.InputError, match="the state to continue from has its own"):
        gorl.iterate(config, state, decoder=policy.decoder)


def test_seeds_share_it(given):
    config, policy = given
    keys = jax.random.split(jax.random.key(1), 2)
    *_, (_, together) = gorl.iterate(config, keys, decoder=policy.decoder)
    for index in range(2):
        alone = gorl.train(config, keys[index], decoder=policy.decoder)
        np.testing.assert_allclose(together.returns[index, -1], alone.returns, rtol=1e-3, atol=1e-3)


def test_a_steered_run_gets_longer_in_its_only_stage(given):
    frozen = gorl.replace(given[0], {"stage_steps": (800,)})
    assert gorl.lengthen(frozen, 1600).stage_steps == (1600,)
    assert gorl.lengthen(gorl.replace(frozen, {"starts_fitted": False}), 1600).stage_steps == (800, 800)


def test_dsrl_is_given_its_decoder_and_has_one_stage():
    config = gorl.preset("MultiGoal", method="dsrl")
    assert config.starts_fitted
    assert config.num_stages == 1
    assert sum(config.stage_steps) == sum(gorl.preset("MultiGoal", method="gorl-reppo").stage_steps)
    with pytest.raises(gorl.InputError, match="begins with a decoder, and none was given"):
        gorl.train(config, jax.random.key(0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"starts_fitted": False}, "set starts_fitted to true"),
        (
            {"decoder": gorl.Diffusion(width=8, depth=1)},
            "is a FlowDecoder, and that of the config is a DiffusionDecoder",
        ),
        ({"decoder.width": 16}, r"velocity.* is float32\[32.* and should be float32\[16"),
        ({"decoder.num_steps": 9}, "differ in a setting"),
        ({"env": "PointMass"}, r"is float32\[.* and should be float32"),
        (
            {"decoder": gorl.Identity(), "stage_steps": (800,)},
            "starts_fitted is true, and the identity decoder cannot be fitted",
        ),
    ],
)
def test_a_decoder_that_the_config_does_not_go_with_is_refused(given, changes, sentence):
    config, policy = given
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.train(gorl.replace(config, changes), jax.random.key(0), decoder=policy.decoder)


def test_an_unfitted_decoder_and_those_of_several_seeds_are_refused(given):
    config, policy = given
    unfitted = gorl.StagedDecoder(policy.decoder.decoder, jnp.zeros((), bool))
    with pytest.raises(gorl.InputError, match="has not been fitted"):
        gorl.train(config, jax.random.key(0), decoder=unfitted)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), policy)
    with pytest.raises(gorl.InputError, match="decoders of several policies"):
        gorl.iterate(config, jax.random.split(jax.random.key(0)), decoder=several.decoder)
