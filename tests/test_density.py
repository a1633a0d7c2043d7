"""The density of a policy's actions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gorl

OBSERVATION = jnp.array([0.3, -0.7, 1.1])


def test_that_of_a_gaussian_policy_is_the_closed_form(make_policy):
    policy = make_policy(3, 2, plain=True)
    mean, std = (np.asarray(part, np.float64) for part in policy.encoder.distribution(OBSERVATION))
    for action in ([0.1, -0.4], [0.9, 0.99], [-0.6, 0.0]):
        before = np.arctanh(action)
        expected = np.sum(scipy.stats.norm.logpdf(before, mean, std) - np.log(1 - np.square(action)))
        np.testing.assert_allclose(policy.log_density(OBSERVATION, jnp.array(action)), expected, rtol=1e-3, atol=1e-3)


def test_that_of_a_linear_flow_is_the_closed_form(make_policy):
    # The velocity A x + b, in n Euler steps, is the affine map x -> M^n x + c with M = I + A / n.
    policy = make_policy(3, 2)
    field = gorl.ConditionalField.init(3, 2, 1, 0, 4, key=jax.random.key(1))
    weight = 0.5 * jax.random.normal(jax.random.key(2), field.network.layers[0].weight.shape)
    weight = weight.at[:, 5:].set(0.0)  # neither the observation nor the time
    field = eqx.tree_at(lambda f: f.network.layers[0].weight, field, weight.at[:, :3].set(0.0))
    policy = eqx.tree_at(lambda p: p.decoder.decoder.velocity, policy, field)
    steps, matrix = 4, np.asarray(weight[:, 3:5], np.float64)
    power = np.linalg.matrix_power(np.eye(2) + matrix / steps, steps)
    mean, std = (np.asarray(part, np.float64) for part in policy.encoder.distribution(OBSERVATION))
    law = scipy.stats.multivariate_normal(power @ mean, power @ np.diag(std**2) @ power.T)
    for action in ([0.1, -0.4], [0.7, 0.2], [-0.6, 0.0]):
        expected = law.logpdf(np.arctanh(action)) - np.sum(np.log(1 - np.square(action)))
        np.testing.assert_allclose(policy.log_density(OBSERVATION, jnp.array(action)), expected, rtol=1e-3, atol=1e-3)


def test_it_integrates_to_one_over_all_actions(make_policy, optimised):
    policy = make_policy(3, 2)
    # Before tanh, where the grid need not be fine near the edges.
    points = np.linspace(-6, 6, 41)
    grid = np.stack(np.meshgrid(points, points), axis=-1).reshape(-1, 2)
    actions = jnp.asarray(np.tanh(grid), jnp.float32)
    logs = jax.lax.map(lambda action: policy.log_density(OBSERVATION, action), actions, batch_size=41 * 41)
    slopes = np.sum(2 * (np.log(2) - grid - np.log1p(np.exp(-2 * grid))), axis=1)
    density = np.exp(np.where(np.isfinite(logs), logs, -np.inf) + slopes)
    total = density.sum() * (points[1] - points[0]) ** 2
    assert abs(total - 1) < 0.01


@pytest.mark.parametrize("kind", ["flow", "diffusion", "fpo"])
def test_a_drawn_action_has_the_density_that_it_was_drawn_with(make_policy, kind, shaken):
    policy = make_policy(3, 2)
    if kind == "diffusion":
        fresh = gorl.Diffusion(width=8, depth=1).init(policy.encoder.statistics, 2, jax.random.key(0))
        observations = jax.random.normal(jax.random.key(1), (20, 32, 3))
        actions = 0.5 * jax.random.normal(jax.random.key(2), (20, 32, 2))
        refinement = gorl.Refinement(num_episodes=32, num_validation_episodes=4, batch_size=56, num_epochs=100)
        decoder, _ = gorl.fit_decoder(fresh, observations, actions, refinement, jax.random.key(3))
        policy = eqx.tree_at(lambda p: p.decoder, policy, decoder)
    if kind == "fpo":
        learner = gorl.FPO(policy_width=8, policy_depth=1, value_width=1, value_depth=1)
        encoder = shaken(learner.encoder(learner.init(3, 2, jax.random.key(0))))
        policy = gorl.Policy(encoder, gorl.IdentityDecoder(), 3, 2)
    keys = jax.random.split(jax.random.key(3), 20)
    actions, logs = jax.vmap(lambda key: policy.sample_with_log_density(OBSERVATION, key))(keys)
    found = jax.vmap(lambda action: policy.log_density(OBSERVATION, action))(actions)
    inside = np.all(np.abs(actions) < 0.999, axis=1)
    assert inside.sum() > 10
    np.testing.assert_allclose(found[inside], logs[inside], rtol=2e-2, atol=2e-2)
    # By finite differences of the map from noise to action, in one dimension after the other.
    noise = jax.random.normal(keys[0], (2,))

    def act(noise):
        return np.float64(jnp.tanh(policy.decoder.decode(OBSERVATION, policy.encoder.from_noise(OBSERVATION, noise))))

    step = 1e-2 * np.eye(2, dtype=np.float32)
    slope = np.stack([(act(noise + row) - act(noise - row)) / 2e-2 for row in step], axis=1)
    expected = scipy.stats.norm.logpdf(noise).sum() - np.linalg.slogdet(slope).logabsdet
    np.testing.assert_allclose(logs[0], expected, rtol=1e-2, atol=1e-2)


def test_a_policy_whose_noise_is_no_action_has_none():
    learner = gorl.DPPO(policy_width=8, policy_depth=1, value_width=1, value_depth=1, num_steps=4)
    encoder = learner.encoder(learner.init(3, 2, jax.random.key(0)))
    policy = gorl.Policy(encoder, gorl.IdentityDecoder(), 3, 2)
    with pytest.raises(gorl.InputError, match=r"density of a policy of a ChainEncoder is not known.*\(5, 2\)"):
        policy.log_density(OBSERVATION, jnp.zeros(2))
    with pytest.raises(gorl.InputError, match="one to one"):
        policy.sample_with_log_density(OBSERVATION, jax.random.key(0))


def test_the_wrong_number_of_numbers(make_policy, unchecked):
    policy = make_policy(3, 2)
    with pytest.raises(gorl.InputError, match="the action of this policy must be one vector of 2 numbers"):
        policy.log_density(OBSERVATION, jnp.zeros(3))
    with pytest.raises(gorl.InputError, match=r"jax\.vmap\(policy\.log_density\)\(observations, actions\)"):
        policy.log_density(jnp.zeros((4, 3)), jnp.zeros((4, 2)))
