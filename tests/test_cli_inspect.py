"""`gorl inspect`."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gorl
from gorl_cli._inspect import along_episode

ENV = gorl.EnvConfig("MultiGoal", episode_length=10)


class TwoModes(gorl.AbstractDecoder):
    """Maps each latent to `2 tanh(4 latent) + latent / 10`, which has a mode on either side of zero."""

    def decode(self, observation, latent):
        return 2 * jnp.tanh(4 * latent) + 0.1 * latent

    def loss(self, observation, latent, action, key):
        return jnp.zeros(())


def two_modes(policy):
    """At the prior, so that latents are N(0, I)."""
    encoder = eqx.tree_at(lambda policy: policy.encoder, policy, policy.encoder.at_prior()).encoder
    return gorl.Policy(encoder, TwoModes(), policy.observation_size, policy.action_size)


def one_dimension():
    """Probabilities of small intervals of the latent, and the density of the action there, in double precision."""
    latent = np.linspace(-8, 8, 400_001)
    slope = 8 / np.cosh(4 * latent) ** 2 + 0.1
    return (
        scipy.stats.norm.pdf(latent) * (latent[1] - latent[0]),
        scipy.stats.norm.logpdf(latent) - np.log(slope),
        latent,
    )


def test_a_gaussian_policy_has_the_entropy_of_its_closed_form(make_policy):
    policy = make_policy(2, 2, plain=True)
    states = along_episode(ENV, policy, jax.random.key(0), num_states=3)
    episode = gorl.play(ENV, policy, jax.random.split(jax.random.key(0))[0], stochastic=True)
    for state in states:
        mean, std = policy.encoder.distribution(episode.observation[0, state.step])
        of_tanh = 0.0
        for center, spread in zip(np.float64(mean), np.float64(std), strict=True):
            law = scipy.stats.norm(center, spread)
            of_tanh += law.entropy() + law.expect(
                lambda x: -2 * np.log(np.cosh(x)), lb=center - 9 * spread, ub=center + 9 * spread
            )
        assert abs(state.entropy - of_tanh) < 5 * state.entropy_error
        assert 0 < state.entropy_error < 0.1
        assert abs(state.non_gaussianity) < 0.02
        assert (state.modes, state.latent_divergence) == (1, None)
        assert state.dip_p_value > 0.05
    assert len({state.step for state in states}) == 3


def test_two_modes_are_seen_and_are_as_far_from_a_gaussian_as_an_integral_says(make_policy):
    policy = two_modes(make_policy(2, 2, plain=True))
    (state,) = along_episode(ENV, policy, jax.random.key(0), num_states=1)
    weight, log_density, latent = one_dimension()
    action = 2 * np.tanh(4 * latent) + 0.1 * latent
    # Both dimensions are alike and independent, so the divergence is twice that of one.
    expected = 2 * (np.sum(weight * log_density) + 0.5 * np.log(2 * np.pi * np.e * np.sum(weight * action**2)))
    assert expected > 0.5
    np.testing.assert_allclose(state.non_gaussianity, expected, rtol=0.05)
    assert state.modes > 1
    assert state.dip_p_value < 1e-3
    np.testing.assert_allclose(state.latent_divergence, 0.0, atol=1e-5)


def test_what_is_not_known_of_a_chain_is_left_out():
    learner = gorl.DPPO(policy_width=4, policy_depth=1, value_width=1, value_depth=1)
    policy = gorl.Policy(learner.fresh_encoder(2, 2, jax.random.key(0)), gorl.IdentityDecoder(), 2, 2)
    (state,) = along_episode(ENV, policy, jax.random.key(0), num_states=1, num_actions=200)
    assert (state.entropy, state.entropy_error, state.non_gaussianity, state.latent_divergence) == (None,) * 4
    assert state.modes >= 1


def test_the_command_prints_a_table_or_json_and_draws(command, finished_run, tmp_path):
    picture = tmp_path / "states.png"
    options = ("--states", 2, "--actions", 200, "--seed", 6)
    code, output, _ = command("inspect", finished_run.directory, *options, "-o", picture)
    assert code == 0
    assert "from Gaussian" in output
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, output, _ = command("inspect", finished_run.directory, *options, "--json")
    said = json.loads(output)
    expected = along_episode(finished_run.config.env, finished_run.policy(6), jax.random.key(0), 2, 200)
    assert [state["entropy"] for state in said["states"]] == pytest.approx(
        [state.entropy for state in expected], rel=1e-4
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--states", 0), "give at least one state and 100 actions, not 0 and 4096"),
        (("--actions", 5), "give at least one state and 100 actions, not 6 and 5"),
        (("-o", "states.txt"), "states.txt"),
        (("--seed", 99), "99"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(command, finished_run, options, sentence):
    code, output, error = command("inspect", finished_run.directory, *options)
    assert code == 2
    assert sentence in error
    assert not output
