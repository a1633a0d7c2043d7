"""Distillation of a policy's decoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl

ENV = gorl.EnvConfig("MultiGoal", episode_length=20)
SMALL = gorl.Refinement(
    num_episodes=64, num_validation_episodes=8, batch_size=256, num_epochs=40, patience=40, learning_rate=3e-3
)


@pytest.fixture(scope="module")
def distilled(make_policy):
    """A policy with a flow of four steps, that with one pass in its place, and how the regression went."""
    teacher = make_policy(2, 2)
    student, fit = gorl.distill(ENV, teacher, gorl.MeanFlow(width=32, depth=2), jax.random.key(0), SMALL)
    return teacher, student, fit


def test_the_student_does_what_the_teacher_does(distilled):
    teacher, student, fit = distilled
    played = gorl.play(ENV, teacher, jax.random.key(5), num_episodes=512, stochastic=True)
    observations = played.observation.reshape(-1, 2)
    keys = jax.random.split(jax.random.key(6), len(observations))

    def before_tanh(policy):
        return np.asarray(jax.vmap(lambda seen, key: policy.sample(seen, key)[2])(observations, keys))

    theirs, ours = before_tanh(teacher), before_tanh(student)
    error = np.mean((theirs - ours) ** 2)
    assert error < 0.02 * theirs.var()
    # The loss that it reports is this one, on other episodes; rare latents weigh much in it.
    assert 1 / 3 < fit.validation_loss / error < 3


def test_only_the_decoder_is_another_one(distilled, assert_same):
    teacher, student, _ = distilled
    assert_same(student.encoder, teacher.encoder)
    assert isinstance(student.decoder.decoder, gorl.MeanFlowDecoder)
    assert bool(student.decoder.fitted)


def test_the_student_is_saved_and_exported_as_any_policy(distilled, tiny, tmp_path, assert_same):
    _, student, _ = distilled
    config = gorl.replace(tiny, {"learner.policy_width": 16, "decoder": gorl.MeanFlow(width=32, depth=2)})
    gorl.save_policy(tmp_path / "policy.eqx", student, config)
    assert_same(gorl.load_policy(tmp_path / "policy.eqx"), student)
    exported = jax.export.deserialize(gorl.export_stablehlo(student))
    observation, latent = jnp.ones((3, 2)), jnp.zeros((3, 2))
    np.testing.assert_allclose(exported.call(observation, latent), jax.vmap(student.mode)(observation), atol=1e-5)


def test_what_cannot_be_distilled_is_refused(make_policy):
    teacher, decoder, key = make_policy(2, 2), gorl.MeanFlow(), jax.random.key(0)
    unfitted = eqx.tree_at(lambda policy: policy.decoder.fitted, teacher, jnp.zeros((), bool))
    for policy in (make_policy(2, 2, plain=True), unfitted):
        with pytest.raises(gorl.InputError, match="no decoder that was fitted"):
            gorl.distill(ENV, policy, decoder, key)
    with pytest.raises(gorl.InputError, match="give the environment that it was trained on"):
        gorl.distill("PointMass", teacher, decoder, key)
    with pytest.raises(gorl.InputError, match=r"decoder\.width must be an integer at least 1"):
        gorl.distill(ENV, teacher, gorl.MeanFlow(width=0), key)
    with pytest.raises(gorl.InputError, match=r"refinement\.batch_size = 8192"):
        gorl.distill(ENV, teacher, decoder, key, gorl.Refinement(num_episodes=4, num_validation_episodes=1))
