import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl


@pytest.fixture(params=[True, False], ids=["fitted", "unfitted"])
def policy(request, make_policy):
    return make_policy(3, 2, fitted=request.param)


@pytest.fixture(scope="module")
def observations():
    # Far outside what the statistics have seen, too: the action has to stay in its range whatever comes.
    return jax.random.normal(jax.random.key(1), (20, 3)) * jnp.logspace(-3, 4, 20)[:, None]


def keys(count):
    return jax.random.split(jax.random.key(2), count)


def test_actions_lie_in_the_range_of_the_environment(policy, observations):
    actions = jax.vmap(policy)(observations, keys(20))
    assert actions.shape == (20, 2)
    assert jnp.all(jnp.abs(actions) <= 1)
    assert jnp.std(actions) > 0.1  # and they use it


def test_modes_lie_in_the_range_of_the_environment(policy, observations):
    modes = jax.vmap(policy.mode)(observations)
    assert modes.shape == (20, 2)
    assert jnp.all(jnp.abs(modes) <= 1)


def test_one_observation_gives_what_it_gives_in_a_batch(policy, observations):
    batched = jax.vmap(policy)(observations, keys(20))
    single = policy(observations[3], keys(20)[3])
    assert single.shape == (2,)
    np.testing.assert_allclose(single, batched[3], atol=1e-5)
    np.testing.assert_allclose(policy.mode(observations[3]), jax.vmap(policy.mode)(observations)[3], atol=1e-5)


def test_the_key_decides_the_action(policy, observations):
    first, again, other = (policy(observations[0], key) for key in (keys(2)[0], keys(2)[0], keys(2)[1]))
    np.testing.assert_array_equal(first, again)
    assert jnp.all(first != other)


def test_the_mode_is_the_action_of_the_mean_latent(policy, observations):
    mean, _ = policy.encoder.distribution(observations[0])
    action = jnp.tanh(policy.decoder.decode(observations[0], mean))
    np.testing.assert_allclose(policy.mode(observations[0]), action, atol=1e-6)
    np.testing.assert_array_equal(policy.mode(observations[0]), policy.mode(observations[0]))


def test_an_action_is_the_tanh_of_the_decoded_latent(policy, observations):
    latent, _, action = policy.sample(observations[0], keys(1)[0])
    np.testing.assert_allclose(action, policy.decoder.decode(observations[0], latent), atol=1e-6)
    np.testing.assert_allclose(policy(observations[0], keys(1)[0]), jnp.tanh(action), atol=1e-6)


def test_latents_follow_the_encoders_distribution(make_policy):
    policy, observation, num_draws = make_policy(3, 2), jnp.asarray([0.3, -0.5, 1.0]), 10_000
    latents, _, _ = jax.jit(jax.vmap(policy.sample, in_axes=(None, 0)))(observation, keys(num_draws))
    mean, std = policy.encoder.distribution(observation)
    # Four standard errors of a mean and of a standard deviation.
    np.testing.assert_allclose(np.mean(latents, axis=0), mean, atol=4 * float(std.max()) / num_draws**0.5)
    np.testing.assert_allclose(np.std(latents, axis=0), std, rtol=4 / (2 * num_draws) ** 0.5)


def test_a_policy_works_in_jit_and_is_returned_from_it(policy, observations):
    returned = jax.jit(lambda p: p)(policy)
    np.testing.assert_array_equal(returned.mode(observations[0]), policy.mode(observations[0]))


def test_a_policy_knows_its_sizes(policy):
    assert (policy.observation_size, policy.action_size) == (3, 2)


# --- The decoder that is the identity until it has been fitted. ---


def test_an_unfitted_decoder_is_exactly_the_identity(make_policy, observations):
    decoder = make_policy(3, 2, fitted=False).decoder
    latents = jax.random.normal(jax.random.key(3), (20, 2))
    np.testing.assert_array_equal(jax.vmap(decoder.decode)(observations, latents), latents)


def test_a_fitted_decoder_decodes(make_policy, observations):
    decoder = make_policy(3, 2, fitted=True).decoder
    latents = jax.random.normal(jax.random.key(3), (20, 2))
    decoded = jax.vmap(decoder.decode)(observations, latents)
    np.testing.assert_allclose(decoded, jax.vmap(decoder.decoder.decode)(observations, latents), rtol=1e-5, atol=1e-5)
    assert jnp.all(jnp.abs(decoded - latents).max(axis=-1) > 1e-3)


def test_fitted_and_unfitted_decoders_may_stand_in_one_batch(make_policy, observations):
    decoder = make_policy(3, 2).decoder.decoder
    latent = jnp.asarray([0.5, -0.5])
    decoded = jax.vmap(lambda fitted: gorl.StagedDecoder(decoder, fitted).decode(observations[5], latent))(
        jnp.asarray([False, True])
    )
    np.testing.assert_array_equal(decoded[0], latent)
    np.testing.assert_allclose(decoded[1], decoder.decode(observations[5], latent), rtol=1e-5, atol=1e-5)


def test_whether_a_decoder_is_fitted_stays_a_branch_in_a_batch_of_observations(make_policy, observations):
    # A select would pay for the decoder in the first stage, too.
    decoder = make_policy(3, 2).decoder.decoder

    def decode(fitted, observation, latent):
        return gorl.StagedDecoder(decoder, fitted).decode(observation, latent)

    program = jax.make_jaxpr(jax.vmap(decode, (None, 0, 0)))(jnp.asarray(True), observations, jnp.zeros((20, 2)))
    assert [equation.primitive.name for equation in program.eqns].count("cond") == 1


def test_the_loss_is_the_decoders(make_policy):
    decoder, key = make_policy(3, 2).decoder, jax.random.key(4)
    pair = (jnp.ones(3), jnp.asarray([0.5, 0.1]), jnp.asarray([0.2, -1.0]))
    assert decoder.loss(*pair, key) == decoder.decoder.loss(*pair, key)
