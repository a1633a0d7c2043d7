from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

import gorl
from gorl import Diffusion, FlowMatching, Gaussian, MeanFlow, Refinement, RunningStatistics


@eqx.filter_jit
def fit_decoder(decoder, observations, actions, refinement, key, latents=None):
    """Of pairs by episode, which is how these tests make them."""
    by_time = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), (observations, actions, latents))
    return gorl.fit_decoder(decoder, *by_time[:2], refinement, key, by_time[2])


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


def fit_to_mixture(config, num_epochs):
    observation_key, action_key, init_key, fit_key = jax.random.split(jax.random.key(0), 4)
    scale, offset = jnp.array([1.0, 4.0]), jnp.array([0.0, 4.0])
    observations = offset + scale * jax.random.normal(observation_key, (200, 100, 2))
    actions = draw_mixture(observations, action_key)
    decoder = config.init(RunningStatistics.of(observations), 2, init_key)
    refinement = Refinement(
        num_episodes=200, num_validation_episodes=20, batch_size=512, num_epochs=num_epochs, learning_rate=1e-3
    )
    return fit_decoder(decoder, observations, actions, refinement, fit_key)[0]


def decode_and_truth(decoder, observation):
    """4000 samples of a decoder at one observation, and as many of the mixture."""
    latent_key, truth_key = jax.random.split(jax.random.key(1))
    latents = jax.random.normal(latent_key, (4000, 2))
    samples = jax.jit(jax.vmap(decoder.decode, in_axes=(None, 0)))(jnp.array(observation), latents)
    return samples, draw_mixture(jnp.broadcast_to(jnp.array(observation), (4000, 2)), truth_key)


# The values of the paper, ten steps and for the diffusion ten levels of noise, but for a wider network. MeanFlow takes
# one step.
@pytest.fixture(scope="module", params=[FlowMatching, Diffusion, MeanFlow], ids=["flow", "diffusion", "meanflow"])
def mixture_decoder(request):
    return fit_to_mixture(request.param(width=64, depth=3), num_epochs=20)


@pytest.mark.parametrize("observation", [(0.0, 4.0), (1.0, 0.0), (-1.5, 8.0)])
def test_a_decoder_learns_a_conditional_mixture_of_two_modes(mixture_decoder, observation):
    samples, truth = decode_and_truth(mixture_decoder, observation)
    in_upper_mode = np.mean(samples @ upper_mode(jnp.array(observation)) > 0)
    assert 0.45 < in_upper_mode < 0.55

    # The best that a Gaussian could do is an energy distance of 0.09 to 0.18.
    gaussian = np.random.default_rng(0).multivariate_normal(np.mean(truth, axis=0), np.cov(truth, rowvar=False), 2000)
    assert energy_distance(samples[:2000], truth[:2000]) < 0.02
    assert energy_distance(gaussian, truth[:2000]) > 0.08


def test_a_gaussian_decoder_does_not():
    decoder = fit_to_mixture(Gaussian(width=64, depth=3), num_epochs=5)
    samples, truth = decode_and_truth(decoder, (0.0, 4.0))
    assert energy_distance(samples[:2000], truth[:2000]) > 0.08


def test_a_gaussian_decoder_learns_the_mean_and_the_standard_deviation_at_each_observation():
    observation_key, noise_key = jax.random.split(jax.random.key(0))
    observations = jax.random.uniform(observation_key, (100, 200, 1), minval=-2.0, maxval=2.0)

    def truth(observation):
        mean = jnp.concatenate([jnp.sin(observation), 0.5 * observation], axis=-1)
        std = jnp.concatenate([jnp.exp(0.5 * observation - 1), jnp.full_like(observation, 0.3)], axis=-1)
        return mean, std

    mean, std = truth(observations)
    actions = mean + std * jax.random.normal(noise_key, mean.shape)
    decoder = Gaussian(width=32, depth=2).init(RunningStatistics.of(observations), 2, jax.random.key(1))
    refinement = Refinement(
        num_episodes=100,
        num_validation_episodes=10,
        num_noise_samples=1,
        batch_size=512,
        num_epochs=40,
        learning_rate=1e-3,
    )
    decoder, _ = fit_decoder(decoder, observations, actions, refinement, jax.random.key(2))

    grid = jnp.linspace(-1.8, 1.8, 13)[:, None]
    middle = jax.vmap(lambda observation: decoder.decode(observation, jnp.zeros(2)))(grid)
    above = jax.vmap(lambda observation: decoder.decode(observation, jnp.ones(2)))(grid)
    mean, std = truth(grid)
    # In units of the spread.
    np.testing.assert_allclose((middle - mean) / std, 0, atol=0.15)
    np.testing.assert_allclose((above - middle) / std, 1, atol=0.1)


# --- What actions are paired with. ---


def test_a_flow_carries_latents_of_its_own_where_they_went_and_others_to_the_same_distribution():
    # A turn by a quarter is a map that no transport of distributions would choose: it leaves N(0, I) as it is.
    quarter_turn = 2 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
    latents = jax.random.normal(jax.random.key(0), (100, 50, 2))
    actions = latents @ quarter_turn.T + 1
    observations = jnp.zeros((100, 50, 1))
    decoder = FlowMatching(width=32, depth=1).init(RunningStatistics.empty(1), 2, jax.random.key(1))
    refinement = Refinement(
        num_episodes=100,
        num_validation_episodes=10,
        num_noise_samples=4,
        batch_size=500,
        num_epochs=40,
        learning_rate=3e-3,
    )

    def learned_map(latents):
        fitted, _ = fit_decoder(decoder, observations, actions, refinement, jax.random.key(2), latents)
        fresh = jax.random.normal(jax.random.key(3), (500, 2))
        decoded = jax.jit(jax.vmap(fitted.decode, in_axes=(None, 0)))(jnp.zeros(1), fresh)
        solution, *_ = np.linalg.lstsq(np.column_stack([fresh, np.ones(500)]), decoded, rcond=None)
        error = decoded - (fresh @ quarter_turn.T + 1)
        return solution[:2].T, solution[2], np.sqrt(np.mean(error**2))

    matrix, offset, error = learned_map(latents)
    assert error < 0.3
    np.testing.assert_allclose(matrix, quarter_turn, atol=0.1)
    np.testing.assert_allclose(offset, 1, atol=0.1)

    matrix, offset, error = learned_map(None)
    assert error > 2
    np.testing.assert_allclose(matrix, 2 * np.eye(2), atol=0.3)
    np.testing.assert_allclose(offset, 1, atol=0.3)


class Probe(gorl.AbstractDecoder):
    """A decoder whose loss is any figure of what it is given, so that the loss held out tells what that was."""

    figure: Callable = eqx.field(static=True)
    unused: jax.Array = eqx.field(default_factory=lambda: jnp.zeros(()))

    def decode(self, observation, latent):
        return latent

    def loss(self, observation, latent, action, key):
        return self.figure(observation, latent, action) + 0 * self.unused


def test_own_latents_stay_with_their_observation_and_action():
    keys = jax.random.split(jax.random.key(0), 2)
    observations, actions = jax.random.normal(keys[0], (6, 16, 2)), jax.random.normal(keys[1], (6, 16, 2))
    latents = observations - 3 * actions

    def strays(observation, latent, action):
        return jnp.sum(jnp.abs(latent - (observation - 3 * action)))

    _, fit = fit_decoder(Probe(strays), observations, actions, small_refinement(), jax.random.key(1), latents)
    assert fit.validation_loss < 1e-5
    assert fit.training_loss < 1e-5


@pytest.mark.parametrize("num_noise_samples", [1, 16])
def test_without_own_latents_each_action_meets_as_many_independent_draws_as_asked_for(num_noise_samples):
    actions = 1 + jax.random.normal(jax.random.key(0), (4, 3, 1))
    refinement = Refinement(
        num_episodes=3, num_validation_episodes=1, num_noise_samples=num_noise_samples, batch_size=8, num_epochs=1
    )
    decoder = Probe(lambda observation, latent, action: jnp.sum(latent * action))

    @jax.jit
    @jax.vmap
    def validation_loss(key):
        return gorl.fit_decoder(decoder, jnp.zeros((4, 3, 1)), actions, refinement, key)[1].validation_loss

    losses = np.asarray(validation_loss(jax.random.split(jax.random.key(1), 500)))
    # The mean over 4 actions and their draws of something with mean zero and the action's size as its spread.
    variance = np.sum(np.asarray(actions[:, 0]) ** 2) / 4**2 / num_noise_samples
    assert abs(np.mean(losses)) < 4 * np.sqrt(variance / 500)
    np.testing.assert_allclose(np.var(losses), variance, rtol=4 * np.sqrt(2 / 500))


# --- The search. ---


def small_problem(num_episodes=6, length=16):
    """A fresh decoder, and pairs whose actions have nothing to do with the observations, so that fitting overfits."""
    init_key, observation_key, action_key = jax.random.split(jax.random.key(0), 3)
    observations = 2 + jax.random.normal(observation_key, (num_episodes, length, 8))
    actions = 0.1 * jax.random.normal(action_key, (num_episodes, length, 2))
    decoder = FlowMatching(width=32, depth=2).init(RunningStatistics.of(observations), 2, init_key)
    return decoder, observations, actions


def small_refinement(**changes):
    """Sizes for `small_problem`; what decides no shape is an array, so that most tests share one compiled program."""
    defaults = {
        "num_episodes": 6,
        "num_validation_episodes": 2,
        "batch_size": 32,
        "num_epochs": 5,
        "learning_rate": 1e-2,
    }
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
    assert shorter_fit.validation_loss == fit.validation_loss
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
    assert not eqx.tree_equal(fitted.velocity, decoder.velocity)
    assert_equal(eqx.tree_at(lambda d: d.velocity, fitted, decoder.velocity), decoder)


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
    assert how_it_went_otherwise.validation_loss != how_it_went.validation_loss
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
        ({"stride": 17}, "stride = 17 is more than the 16 steps of an episode: set it to 1"),
        ({"num_validation_episodes": 6}, "num_validation_episodes = 6 leaves none of the 6 episodes"),
        ({"batch_size": 65}, "batch_size = 65 is more than the 64 pairs"),
        ({"stride": 3, "batch_size": 21}, "batch_size = 21 is more than the 20 pairs .*at most 20"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(gorl.InputError, match=message):
        small_refinement(**changes).check(16)


def test_sizes_that_go_together_are_accepted():
    small_refinement(stride=3, batch_size=20).check(16)


@pytest.mark.parametrize("size", [32, 20, 7])
def test_every_pair_held_out_counts_whatever_the_batches(size):
    # 32 pairs are held out: batches of 20 and 7 leave a remainder. A Gaussian's loss has no noise in it.
    _, observations, actions = small_problem()
    decoder = gorl.Gaussian(width=8, depth=1).init(RunningStatistics.of(observations), 2, jax.random.key(2))
    refinement = small_refinement(batch_size=size, patience=1, num_epochs=1, learning_rate=TINY)
    _, fit = fit_decoder(decoder, observations, actions, refinement, jax.random.key(1))
    pairs = zip(observations[:2].reshape(-1, 8), actions[:2].reshape(-1, 2), strict=True)
    expected = np.mean([decoder.loss(seen, jnp.zeros(2), done, jax.random.key(0)) for seen, done in pairs])
    np.testing.assert_allclose(fit.validation_loss, expected, rtol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_pairs_that_do_not_go_together_are_refused():
    decoder, observations, actions = small_problem()
    observations, actions = (jnp.swapaxes(leaf, 0, 1) for leaf in (observations, actions))
    for wrong in (
        (observations[1:], actions, None),
        (jnp.swapaxes(observations, 0, 1), actions, None),  # which would pair each with another's
        (observations, actions, actions[..., :1]),
    ):
        with pytest.raises(gorl.InputError, match="do not go together: give an observation, and a latent"):
            gorl.fit_decoder(decoder, *wrong[:2], small_refinement(), jax.random.key(0), wrong[2])
