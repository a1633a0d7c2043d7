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
    policy, observation, num_noise_samples = make_policy(3, 2), jnp.asarray([0.3, -0.5, 1.0]), 10_000
    latents, _, _ = jax.jit(jax.vmap(policy.sample, in_axes=(None, 0)))(observation, keys(num_noise_samples))
    mean, std = policy.encoder.distribution(observation)
    # Four standard errors of a mean and of a standard deviation.
    np.testing.assert_allclose(np.mean(latents, axis=0), mean, atol=4 * float(std.max()) / num_noise_samples**0.5)
    np.testing.assert_allclose(np.std(latents, axis=0), std, rtol=4 / (2 * num_noise_samples) ** 0.5)


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


# --- One observation, and one policy. ---


def takers(policy):
    key = jax.random.key(0)
    return {
        "mode": lambda observation: policy.mode(observation),
        "draw": lambda observation: policy(observation, key),
        "sample": lambda observation: policy.sample(observation, key)[2],
    }


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("method", "fix"),
    [
        ("mode", r"jax\.vmap\(policy\.mode\)\(observations\)"),
        ("draw", r"jax\.vmap\(policy\)\(observations, keys\)"),
        ("sample", r"jax\.vmap\(policy\.sample\)\(observations, keys\)"),
    ],
)
@pytest.mark.parametrize("action_size", [1, 2])
def test_a_batch_of_observations_is_refused_with_the_way_to_take_it(make_policy, method, fix, action_size):
    # With one action, and a mean and a standard deviation of it, a batch would be split in two.
    policy = make_policy(3, action_size, plain=True)
    sentence = rf"one vector of 3 numbers, not an array of shape \(8, 3\): for several, {fix}\."
    with pytest.raises(gorl.InputError, match=sentence):
        takers(policy)[method](jnp.ones((8, 3)))
    with pytest.raises(gorl.InputError, match=sentence):
        jax.jit(takers(policy)[method])(jnp.ones((8, 3)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ["mode", "draw", "sample"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,), (8, 5), (3, 1)])
def test_an_observation_of_another_size_is_refused(make_policy, method, shape):
    # One number would be taken for all three.
    with pytest.raises(gorl.InputError, match=r"one vector of 3 numbers, not an array of shape .* give one of that"):
        takers(make_policy(3, 2))[method](jnp.ones(shape))


def stacked(policy, count=4):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), policy)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ["mode", "draw", "sample"])
@pytest.mark.parametrize("count", [1, 4])
def test_several_policies_are_refused_with_the_way_to_one(policy, method, count):
    with pytest.raises(gorl.InputError, match=rf"policies of shape \({count},\).* gorl\.of_seed\(policies, 0\)"):
        takers(stacked(policy, count))[method](jnp.ones(3))


def test_several_policies_are_mapped_over(policy, observations):
    modes = jax.vmap(lambda policy, observation: policy.mode(observation))(stacked(policy), observations[:4])
    np.testing.assert_allclose(modes, jax.vmap(policy.mode)(observations[:4]), atol=1e-5)


def test_an_action_has_a_gradient_by_the_observation(policy):
    def total(observation):
        return jnp.sum(policy.mode(observation))

    observation, step = jnp.asarray([0.3, -0.5, 1.0]), 1e-2
    slope = (total(observation.at[0].add(step)) - total(observation.at[0].add(-step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(observation)[0], slope, rtol=0.05, atol=1e-2)


@pytest.mark.usefixtures("unchecked")
def test_encoders_and_decoders_take_one_observation_and_one_latent(make_policy):
    learners = (gorl.PPO, gorl.FPO, gorl.DPPO)
    sizes = {"policy_width": 4, "policy_depth": 1, "value_width": 1, "value_depth": 1}
    encoders = [learner(**sizes).fresh_encoder(3, 1, jax.random.key(0)) for learner in learners]
    statistics, key = gorl.RunningStatistics.empty(3), jax.random.key(0)
    networks = {"width": 4, "depth": 1}
    kinds = tuple(kind(**networks) for kind in (gorl.FlowMatching, gorl.Diffusion, gorl.Gaussian, gorl.MeanFlow))
    decoders = [kind.init(statistics, 1, key) for kind in kinds]
    latent = jnp.zeros(1)
    for shape in ((8, 3), (1,), ()):
        wrong = jnp.ones(shape)
        calls = [
            *((encoder.sample, key) for encoder in encoders),
            *((encoder.mode,) for encoder in encoders),
            *((encoder.from_noise, jnp.zeros(encoder.noise_shape)) for encoder in encoders),
            *((decoder.decode, latent) for decoder in decoders),
            *((decoder.loss, latent, latent, key) for decoder in decoders),
        ]
        for call, *others in calls:
            with pytest.raises(gorl.InputError, match="the observation must be one vector of 3 numbers"):
                call(wrong, *others)
    gaussian = gorl.PPO(**sizes).fresh_encoder(3, 2, key)
    with pytest.raises(gorl.InputError, match="the noise must be one vector of 2 numbers"):
        gaussian.from_noise(jnp.ones(3), jnp.zeros(1))
    with pytest.raises(gorl.InputError, match="the latent must be one vector of 2 numbers"):
        kinds[2].init(statistics, 2, key).decode(jnp.ones(3), latent)
    for kind in kinds:
        pair = (jnp.zeros(2), latent) if isinstance(kind, gorl.Gaussian) else (latent, jnp.zeros(2))
        with pytest.raises(gorl.InputError, match="must be one vector of 2 numbers"):
            kind.init(statistics, 2, key).loss(jnp.ones(3), *pair, key)


@pytest.mark.usefixtures("unchecked")
def test_statistics_of_several_seeds_or_of_another_size_are_not_mixed_up():
    statistics = gorl.RunningStatistics.empty(3)
    for call in (statistics.normalise, statistics.update):
        with pytest.raises(gorl.InputError, match=r"shape \(5, 1\) does not go with .* of shape \(3,\)"):
            call(jnp.ones((5, 1)))
    with pytest.raises(gorl.InputError, match=r"shape \(3,\) does not go with .* of shape \(4, 3\).*gorl\.of_seed"):
        stacked(statistics).normalise(jnp.ones(3))
