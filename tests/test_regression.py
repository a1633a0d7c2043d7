import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

import gorl
from gorl import FlowMatching, Refinement, RunningStatistics

fit_decoder = eqx.filter_jit(gorl.fit_decoder)


def upper_mode(observations):
    first, second = observations[..., 0], observations[..., 1]
    return jnp.stack([1 + 0.3 * jnp.tanh(first), 0.5 * jnp.tanh(second / 4 - 1)], axis=-1)


def draw_mixture(observations, key):
    """Actions at plus or minus `upper_mode`, equally likely, with a little noise."""
    sign_key, noise_key = jax.random.split(key)
    sign = jax.random.rademacher(sign_key, observations.shape[:-1], jnp.float32)[..., None]
    return sign * upper_mode(observations) + 0.1 * jax.random.normal(noise_key, observations.shape)


def energy_distance(one, other):
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased: zero on average for samples of one distribution."""
    return 2 * np.mean(cdist(one, other)) - np.mean(pdist(one)) - np.mean(pdist(other))


@pytest.fixture(scope="module")
def mixture_decoder():
    observation_key, action_key, init_key, fit_key = jax.random.split(jax.random.key(0), 4)
    scale, offset = jnp.array([1.0, 4.0]), jnp.array([0.0, 4.0])
    observations = offset + scale * jax.random.normal(observation_key, (200, 100, 2))
    actions = draw_mixture(observations, action_key)
    decoder = FlowMatching(width=64, depth=3).init(RunningStatistics.of(observations), 2, init_key)
    refinement = Refinement(num_episodes=200, num_heldout=20, batch_size=512, num_epochs=40, learning_rate=1e-3)
    return fit_decoder(decoder, observations, actions, refinement, fit_key)[0]


@pytest.mark.parametrize("observation", [(0.0, 4.0), (1.0, 0.0), (-1.5, 8.0)])
def test_a_decoder_learns_a_conditional_mixture_of_two_modes(mixture_decoder, observation):
    latent_key, truth_key = jax.random.split(jax.random.key(1))
    latents = jax.random.normal(latent_key, (4000, 2))
    samples = jax.vmap(mixture_decoder.decode, in_axes=(None, 0))(jnp.array(observation), latents)
    truth = draw_mixture(jnp.broadcast_to(jnp.array(observation), (4000, 2)), truth_key)

    in_upper_mode = np.mean(samples @ upper_mode(jnp.array(observation)) > 0)
    assert 0.45 < in_upper_mode < 0.55

    # The best that a Gaussian could do is an energy distance of 0.09 to 0.18.
    gaussian = np.random.default_rng(0).multivariate_normal(np.mean(truth, axis=0), np.cov(truth, rowvar=False), 2000)
    assert energy_distance(samples[:2000], truth[:2000]) < 0.02
    assert energy_distance(gaussian, truth[:2000]) > 0.08


def small_problem(num_episodes=6, length=16):
    """A fresh decoder, and pairs whose actions have nothing to do with the observations, so that fitting overfits."""
    init_key, observation_key, action_key = jax.random.split(jax.random.key(0), 3)
    observations = 2 + jax.random.normal(observation_key, (num_episodes, length, 8))
    actions = 0.1 * jax.random.normal(action_key, (num_episodes, length, 2))
    decoder = FlowMatching(width=32, depth=2).init(RunningStatistics.of(observations), 2, init_key)
    return decoder, observations, actions


def small_refinement(**changes):
    """Sizes for `small_problem`; what decides no shape is an array, so that most tests share one compiled program."""
    defaults = {"num_episodes": 6, "num_heldout": 2, "batch_size": 32, "num_epochs": 5, "learning_rate": 1e-2}
    return jax.tree.map(jnp.asarray, Refinement(**{**defaults, **changes}))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_fitting_stops_early_and_keeps_the_best():
    problem, key = small_problem(), jax.random.key(1)
    decoder, fit = fit_decoder(*problem, small_refinement(num_epochs=300, patience=2), key)
    stopped = int(fit.num_epochs)
    assert 2 < stopped < 300
    # The last two epochs were no better, so that a fit without them ends with the same decoder.
    shorter, shorter_fit = fit_decoder(*problem, small_refinement(num_epochs=stopped - 2, patience=2), key)
    assert shorter_fit.num_epochs == stopped - 2
    assert shorter_fit.heldout_loss == fit.heldout_loss
    assert_equal(shorter, decoder)


def test_the_number_of_epochs_is_a_limit():
    _, fit = fit_decoder(*small_problem(), small_refinement(patience=100), jax.random.key(1))
    assert fit.num_epochs == 5


def test_data_that_are_no_numbers_leave_the_decoder_as_it_was():
    decoder, observations, actions = small_problem()
    actions = actions.at[3, 4].set(jnp.nan)
    fitted, fit = fit_decoder(decoder, observations, actions, small_refinement(patience=2), jax.random.key(1))
    assert fit.num_epochs == 2
    assert_equal(fitted, decoder)


def test_fitting_changes_the_network_alone():
    _, observations, actions = small_problem()
    flow = FlowMatching(solver="Tsit5", rtol=1e-3, atol=1e-3)
    decoder = flow.init(RunningStatistics.of(observations), 2, jax.random.key(0))
    fitted, _ = fit_decoder(decoder, observations, actions, small_refinement(), jax.random.key(1))
    assert not eqx.tree_equal(fitted.network, decoder.network)
    assert_equal(eqx.tree_at(lambda d: d.network, fitted, decoder.network), decoder)


def test_one_key_gives_one_decoder():
    problem = small_problem()
    first = fit_decoder(*problem, small_refinement(), jax.random.key(1))
    assert_equal(fit_decoder(*problem, small_refinement(), jax.random.key(1)), first)
    assert not eqx.tree_equal(fit_decoder(*problem, small_refinement(), jax.random.key(2)), first)


def test_whole_episodes_are_held_out():
    decoder, observations, actions = small_problem()

    def fit(actions):
        return fit_decoder(decoder, observations, actions, small_refinement(num_epochs=1), jax.random.key(1))

    fitted, how_it_went = fit(actions)
    other_fitted, how_it_went_otherwise = fit(actions.at[:2].add(1.0))
    assert how_it_went_otherwise.heldout_loss != how_it_went.heldout_loss
    assert_equal(other_fitted, fitted)
    assert not eqx.tree_equal(fit(actions.at[2].add(1.0))[0], fitted)


# Steps too small to change anything: losses can then only differ by their noise.
TINY = 1e-30


def test_the_heldout_loss_always_meets_the_same_noise():
    refinement = small_refinement(patience=3, learning_rate=TINY)
    _, fit = fit_decoder(*small_problem(), refinement, jax.random.key(1))
    assert fit.num_epochs == 4  # the first is the best, and then three no better


def test_each_epoch_of_fitting_meets_fresh_noise():
    problem = small_problem()
    losses = set()
    for patience in (1, 2, 3):
        refinement = small_refinement(patience=patience, learning_rate=TINY)
        _, fit = fit_decoder(*problem, refinement, jax.random.key(1))
        losses.add(float(fit.training_loss))
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 17}, "stride = 17 is more than the 16 steps"),
        ({"num_heldout": 6}, "num_heldout = 6 leaves none of the 6 episodes"),
        ({"batch_size": 65}, "batch_size = 65 is more than the 64 pairs"),
        ({"stride": 3, "batch_size": 21}, "batch_size = 21 is more than the 20 pairs"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(gorl.InputError, match=message):
        small_refinement(**changes).check(16)


def test_sizes_that_go_together_are_accepted():
    small_refinement(stride=3, batch_size=20).check(16)
