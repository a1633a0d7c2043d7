"""The library in programs that set JAX's strictest rules. All of them are about tracing, so nothing is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import gorl


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        with pytest.raises(ValueError, match="numpy_rank_promotion"):
            jnp.ones(2) + jnp.ones((2, 2))
        with pytest.raises(ValueError, match="numpy_dtype_promotion"):
            jnp.ones(2) + jnp.arange(2)
        yield


def small(method, env="MultiGoal"):
    config = gorl.preset(env, method=method)
    changes = {"learner.num_envs": 16, "evaluation_episodes": 4, "stage_steps": (1024,) * config.num_stages}
    if isinstance(config.learner, gorl.SAC):
        changes |= {"learner.buffer_size": 1024}
    else:
        changes |= {"learner.num_minibatches": 2}
    if config.num_stages > 1:
        changes |= {"refinement.num_episodes": 8, "refinement.num_validation_episodes": 2, "refinement.batch_size": 20}
    return gorl.replace(config, changes)


METHODS = ("gorl-flow", "gorl-diffusion", "gorl-sac", "gorl-reppo", "ppo", "fpo++", "dppo", "sac", "reppo")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_under_strict_promotion(method, strict):
    eqx.filter_eval_shape(gorl.train, small(method), jax.random.key(0))


@pytest.mark.parametrize("env", ["PointMass", gorl.EnvConfig("PointMass", implementation="jax"), "brax/ant"])
def test_the_environments_step_under_strict_promotion(env, strict):
    episodes = gorl.load_environment(env if isinstance(env, gorl.EnvConfig) else gorl.EnvConfig(env))
    episode = jax.eval_shape(episodes.start, jax.random.key(0))
    jax.eval_shape(episodes.step, episode, jnp.zeros(episodes.action_size))


def test_a_policy_is_evaluated_and_exported_under_strict_promotion(make_policy, strict):
    policy = make_policy(2, 2)
    jax.eval_shape(lambda key: gorl.evaluate("MultiGoal", policy, key, num_episodes=2), jax.random.key(0))
    jax.eval_shape(lambda key: gorl.play("MultiGoal", policy, key, stochastic=True), jax.random.key(0))
    gorl.export_stablehlo(policy, "seed")
    gorl.export_onnx(policy)
