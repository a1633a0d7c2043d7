import pytest

import gorl


@pytest.mark.parametrize("name", gorl.environments())
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_environment_has_a_preset_that_goes_through_json(name, scale):
    config = gorl.preset(name, scale)
    assert str(config.env) == name
    assert gorl.Config.from_json(config.to_json()) == config


def test_the_paper_scale_is_the_papers():
    # The values of design/algorithm.md, written out again.
    config = gorl.preset("CheetahRun", scale="paper")
    assert config.stage_steps == (60_000_000, 60_000_000, 30_000_000, 30_000_000)
    assert config.evaluation_interval == 6_000_000
    assert config.evaluation_episodes == 128
    assert config.steps_per_iteration == 983_040
    learner = config.learner
    assert (learner.num_envs, learner.unroll_length, learner.num_minibatches, learner.num_epochs) == (2048, 30, 32, 16)
    assert config.steps_per_iteration // learner.num_minibatches == 1024 * 30
    assert (learner.policy_width, learner.policy_depth, learner.value_width, learner.value_depth) == (32, 4, 256, 5)
    assert (learner.learning_rate, learner.clip, learner.discount, learner.gae_lambda) == (1e-3, 0.2, 0.995, 0.95)
    assert (learner.reward_scale, learner.entropy_cost, learner.value_cost) == (10.0, 1e-2, 0.25)
    assert not learner.keep_value
    decoder = config.decoder
    assert (decoder.width, decoder.depth, decoder.num_draws, decoder.num_frequencies) == (32, 4, 8, 4)
    assert (decoder.solver, decoder.num_steps) == ("Euler", 10)
    refinement = config.refinement
    assert (refinement.num_episodes, refinement.stride, refinement.batch_size) == (512, 1, 8192)
    assert (refinement.num_epochs, refinement.patience, refinement.learning_rate) == (50, 20, 3e-4)
    assert config.env.action_repeat == 1


def test_what_single_tasks_change_at_the_paper_scale():
    assert gorl.preset("FingerSpin", "paper").learner.discount == 0.95
    assert gorl.preset("BallInCup", "paper").learner.discount == 0.95
    pendulum = gorl.preset("PendulumSwingup", "paper")
    assert (pendulum.env.action_repeat, pendulum.learner.num_epochs) == (4, 4)


def test_what_the_caller_says_of_the_environment_stays():
    env = gorl.EnvConfig("PointMass", training_length=50, episode_length=500)
    config = gorl.preset(env)
    assert config.env == env


def test_a_misspelt_scale():
    with pytest.raises(gorl.InputError, match="'paper'"):
        gorl.preset("PointMass", "papr")


def test_steps_are_shared_out_like_before():
    config = gorl.replace(gorl.preset("PointMass"), {"stage_steps": (800_000, 400_000)})
    longer = gorl.reschedule(config, total_steps=3_000_000)
    assert longer.stage_steps == (2_000_000, 1_000_000)
    # As many evaluations as before.
    assert longer.evaluation_interval == config.evaluation_interval * 3_000_000 // 1_200_000


def test_more_stages_share_the_steps_like_the_last():
    config = gorl.replace(gorl.preset("PointMass"), {"stage_steps": (800_000, 400_000)})
    assert gorl.reschedule(config, num_stages=3).stage_steps == (600_000, 300_000, 300_000)
    assert gorl.reschedule(config, num_stages=1).stage_steps == (1_200_000,)
    assert gorl.reschedule(config) == config


def test_too_few_steps():
    with pytest.raises(gorl.InputError, match="shorter than one iteration"):
        gorl.reschedule(gorl.preset("PointMass"), total_steps=10_000)
