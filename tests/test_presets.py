import json

import pytest
from mujoco_playground.config import locomotion_params

import gorl
from gorl._env import is_robot


@pytest.mark.parametrize("name", gorl.environments())
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_environment_has_a_preset_that_goes_through_json(name, scale):
    config = gorl.preset(name, scale)
    assert str(config.env) == name
    assert gorl.Config.from_json(config.to_json()) == config


# --- The paper scale, held against design/algorithm.md field by field, with every number written out again. ---
#
# Below each group, the fields on which the paper is silent and that are our own choice.

CLIPPED = {
    "num_envs": 2048,
    "unroll_length": 30,
    "num_unrolls": 16,
    "num_minibatches": 32,
    "num_epochs": 16,
    "policy_width": 32,
    "policy_depth": 4,
    "value_width": 256,
    "value_depth": 5,
    "keep_encoder": False,
    "keep_value": False,
    "discount": 0.995,
    "gae_lambda": 0.95,
    "reward_scale": 10.0,
    "value_loss_coefficient": 0.25,
    "learning_rate_decay": 0.0,
    # Silent.
    "max_gradient_norm": 1.0,
}
PPO = {
    **CLIPPED,
    "type": "PPO",
    "learning_rate": 1e-3,
    "clip_epsilon": 0.2,
    "entropy_coefficient": 1e-2,
    "latent_coefficient": 0.0,
    "keep_features": False,
    "asymmetric": False,
}
FLOW_POLICY = {
    **CLIPPED,
    "type": "FPO",
    "learning_rate": 3e-4,
    "clip_epsilon": 0.05,
    "num_noise_samples": 8,
    "num_steps": 10,
    "average_losses": False,
    # Silent.
    "num_frequencies": 4,
}
DIFFUSION_POLICY = {
    **CLIPPED,
    "type": "DPPO",
    "learning_rate": 3e-4,
    "clip_epsilon": 0.2,
    "num_steps": 10,
    "step_std": 0.05,
    "asymmetric": False,
    # Silent.
    "num_frequencies": 4,
}
SAC = {
    "type": "SAC",
    "learning_rate": 3e-4,
    "batch_size": 256,
    "discount": 0.99,
    "tau": 0.005,
    "updates_per_step": 20,
    "keep_encoder": False,
    # Silent.
    "num_envs": 128,
    "unroll_length": 8,
    "num_unrolls": 1,
    "buffer_size": 1_000_000,
    "policy_width": 256,
    "policy_depth": 2,
    "value_width": 256,
    "value_depth": 2,
    "learn_temperature": True,
    "reward_scale": 1.0,
    "initial_temperature": 1.0,
    "learning_starts": 8192,
    "encoder_starts": 0,
    "memory_limit": 8192,
    "policy_norm": False,
    "value_norm": False,
    "learning_rate_decay": 0.0,
    "average_decay": 0.0,
    "num_critics": 2,
    "pessimistic": True,
    "num_bins": None,
    "bootstrap_steps": 1,
    "lowest_value": None,
    "highest_value": None,
}
# The paper of REPPO has these for its large setting.
REPPO = {
    "type": "REPPO",
    "num_envs": 1024,
    "unroll_length": 128,
    "num_unrolls": 1,
    "num_minibatches": 64,
    "num_epochs": 8,
    "policy_width": 512,
    "policy_depth": 3,
    "value_width": 512,
    "value_depth": 3,
    "policy_norm": True,
    "value_norm": True,
    "num_bins": 151,
    "kl_mode": "clipped",
    "learning_rate": 3e-4,
    "dual_learning_rate": 3e-4,
    "max_gradient_norm": 0.5,
    "discount": 0.99,
    "trace_decay": 0.95,
    "reward_scale": 1.0,
    "initial_temperature": 0.01,
    "initial_multiplier": 0.01,
    "kl_bound": 0.1,
    # Ours.
    "auxiliary_loss": False,
    "auxiliary_loss_coefficient": 0.0,
    "keep_critic": False,
    "keep_encoder": False,
    "keep_features": False,
    "learn_temperature": True,
    "encoder_starts": 0,
    "learning_rate_decay": 0.0,
    "lowest_value": None,
    "highest_value": None,
    "average_decay": 0.95,
}
NETWORK_OF_DECODER = {"width": 32, "depth": 4, "num_frequencies": 4}
EULER_STEPS = {"solver": "Euler", "num_steps": 10, "rtol": None, "atol": None}
FLOW_MATCHING = {"type": "FlowMatching", **NETWORK_OF_DECODER, **EULER_STEPS}
DIFFUSION = {"type": "Diffusion", **NETWORK_OF_DECODER, **EULER_STEPS, "schedule": "cosine", "num_levels": 10}
MEAN_FLOW = {"type": "MeanFlow", **NETWORK_OF_DECODER, "interval_share": 0.5, "weight_power": 0.5}  # ours
IDENTITY = {"type": "Identity"}
REFINEMENT = {
    "num_episodes": 512,
    "stride": 1,
    "num_noise_samples": 8,
    "own_latents": False,
    "batch_size": 8192,
    "num_epochs": 50,
    "learning_rate": 3e-4,
    "patience": 20,  # of the public code, like the tenth that is held out
    "num_validation_episodes": 51,
}
STAGES = {"stage_steps": [60_000_000, 60_000_000, 30_000_000, 30_000_000], "evaluation_interval": 6_000_000}
ONE_STAGE = {**STAGES, "stage_steps": [180_000_000]}
SAC_STAGES = {"stage_steps": [2_000_000, 1_000_000, 1_000_000], "evaluation_interval": 100_000}  # silent: the interval
SAC_ONE_STAGE = {**SAC_STAGES, "stage_steps": [4_000_000]}

METHODS = {
    "gorl-flow": {"learner": {**PPO, "on_actions": False}, "decoder": FLOW_MATCHING, **STAGES},
    "gorl-diffusion": {"learner": {**PPO, "on_actions": False}, "decoder": DIFFUSION, **STAGES},
    "gorl-meanflow": {"learner": {**PPO, "on_actions": False}, "decoder": MEAN_FLOW, **STAGES},
    "gorl-sac": {
        "learner": {**SAC, "on_actions": False, "target_divergence": 1.0},  # silent: the target
        "decoder": DIFFUSION,
        **SAC_STAGES,
    },
    "gorl-reppo": {
        "learner": {**REPPO, "on_actions": False, "target_divergence": 1.0},
        "decoder": FLOW_MATCHING,
        **STAGES,
    },
    "dsrl": {
        "learner": {**REPPO, "on_actions": False, "target_divergence": 1.0},
        "decoder": FLOW_MATCHING,
        **ONE_STAGE,
    },
    "ppo": {"learner": {**PPO, "on_actions": True}, "decoder": IDENTITY, **ONE_STAGE},
    "fpo": {"learner": {**FLOW_POLICY, "asymmetric": False}, "decoder": IDENTITY, **ONE_STAGE},
    "fpo++": {"learner": {**FLOW_POLICY, "asymmetric": True}, "decoder": IDENTITY, **ONE_STAGE},
    "dppo": {"learner": DIFFUSION_POLICY, "decoder": IDENTITY, **ONE_STAGE},
    # The usual target entropy, -1 per dimension, is a divergence of 1 + log 2 from the uniform distribution.
    "sac": {"learner": {**SAC, "on_actions": True, "target_divergence": 1.69}, "decoder": IDENTITY, **SAC_ONE_STAGE},
    # An entropy of -0.5 per dimension is a divergence of 0.5 + log 2 from the uniform distribution.
    "reppo": {"learner": {**REPPO, "on_actions": True, "target_divergence": 1.19}, "decoder": IDENTITY, **ONE_STAGE},
}
# The tasks of the paper's figures and tables, and what each changes for PPO and its relatives.
TASKS = {
    "CheetahRun": {},
    "FingerSpin": {"discount": 0.95},
    "FingerTurnHard": {},
    "FishSwim": {},
    "HopperStand": {},
    "WalkerWalk": {},
    "HumanoidStand": {},
    "HumanoidWalk": {},
    "HumanoidRun": {},
}


def written(config):
    """Every field of a config, by name, as it is written to a file."""
    return json.loads(config.to_json())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", [*TASKS, "brax/hopper", "brax/walker2d", "brax/halfcheetah"])
def test_the_paper_scale_is_the_papers(task, method):
    expected = METHODS[method]
    changes = TASKS.get(task, {}) if expected["learner"]["type"] not in ("SAC", "REPPO") else {}
    assert written(gorl.preset(task, "paper", method)) == {
        "env": {
            "name": task,
            "episode_length": None,
            "training_length": None,
            "staggered": False,
            "action_repeat": 1,
            "backend": None,
            "implementation": None,
            "policy_observation": None,
            "critic_observation": None,
            "commands": None,
            "randomization": None,
        },
        "refinement": REFINEMENT,
        "evaluation_episodes": 128,
        "stage_patience": None,
        "stage_margin": 0.01,
        "starts_fitted": method == "dsrl",
        "extra_evaluations": [],
        **expected,
        "learner": {**expected["learner"], **changes},
    }


def test_every_method_is_held_against_the_paper():
    assert set(METHODS) == set(gorl.methods())


@pytest.mark.parametrize("method", ["gorl-flow", "gorl-diffusion", "ppo", "fpo", "fpo++", "dppo"])
def test_an_iteration_of_the_paper_scale_is_the_papers(method):
    config = gorl.preset("CheetahRun", "paper", method)
    assert config.steps_per_iteration == 983_040
    assert config.steps_per_iteration // config.learner.num_minibatches == 1024 * 30
    assert sum(config.stage_steps) == 180_000_000


@pytest.mark.parametrize("method", ["gorl-flow", "gorl-diffusion", "ppo", "fpo", "fpo++", "dppo"])
def test_what_single_tasks_change_at_the_paper_scale(method):
    assert gorl.preset("FingerSpin", "paper", method).learner.discount == 0.95
    assert gorl.preset("BallInCup", "paper", method).learner.discount == 0.95
    pendulum = gorl.preset("PendulumSwingup", "paper", method)
    assert (pendulum.env.action_repeat, pendulum.learner.num_epochs) == (4, 4)


def test_robots_have_playgrounds_values_at_the_paper_scale():
    """Of its `locomotion_params`, but for the clip and the shape of the networks."""
    theirs = locomotion_params.brax_ppo_config("Go1JoystickFlatTerrain")
    config = gorl.preset("Go1JoystickFlatTerrain", "paper", "ppo")
    learner = config.learner
    assert learner.num_envs == theirs.num_envs
    assert learner.unroll_length * learner.num_unrolls == theirs.unroll_length
    assert learner.num_minibatches == theirs.num_minibatches == theirs.num_envs // theirs.batch_size
    assert learner.num_epochs == theirs.num_updates_per_batch
    assert float(learner.learning_rate) == pytest.approx(theirs.learning_rate)
    assert float(learner.entropy_coefficient) == pytest.approx(theirs.entropy_cost)
    assert float(learner.discount) == pytest.approx(theirs.discounting)
    assert float(learner.reward_scale) == pytest.approx(theirs.reward_scaling)
    assert float(learner.max_gradient_norm) == pytest.approx(theirs.max_grad_norm)
    assert sum(config.stage_steps) == theirs.num_timesteps


@pytest.mark.parametrize("method", ["gorl-sac", "sac"])
def test_what_single_tasks_change_of_ppo_leaves_sac_alone(method):
    assert gorl.preset("FingerSpin", "paper", method).learner.discount == 0.99
    assert gorl.preset("PendulumSwingup", "paper", method).env.action_repeat == 4


@pytest.mark.parametrize("method", ["gorl-sac", "sac"])
def test_sac_has_categorical_critics_at_the_laptop_scale_where_the_range_of_rewards_is_known(method):
    def categorical(task):
        return gorl.preset(task, method=method).learner.num_bins is not None

    suite = [name for name in gorl.environments() if gorl.internal.family(name) == "Playground"]
    suite = [name for name in suite if not is_robot(name)]
    assert len(suite) == 25
    assert all(categorical(name) for name in suite)
    others = set(gorl.environments()) - set(suite)
    assert not any(categorical(name) for name in (*others, "my_robot:Walk"))


def test_the_preset_without_a_method_is_that_of_gorl_with_flow_matching():
    for scale in ("laptop", "paper"):
        assert gorl.preset("CheetahRun", scale) == gorl.preset("CheetahRun", scale, "gorl-flow")


@pytest.mark.parametrize("method", ["ppo", "fpo", "fpo++", "dppo", "sac", "reppo"])
def test_methods_without_a_decoder_get_all_the_steps_in_one_stage(method):
    staged = "gorl-sac" if method == "sac" else "gorl-flow"
    assert gorl.preset("CheetahRun", "paper", method).stage_steps == (
        sum(gorl.preset("CheetahRun", "paper", staged).stage_steps),
    )
    assert gorl.preset("CheetahRun", "laptop", method).num_stages == 1


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


def test_what_is_changed_with_the_steps_goes_before_what_follows_from_them():
    config = gorl.preset("PointMass")
    changed = gorl.reschedule(config, total_steps=6_000_000, changes={"evaluation_interval": 200_000})
    assert changed == gorl.replace(config, {"stage_steps": (4_000_000, 2_000_000), "evaluation_interval": 200_000})


def test_what_only_goes_together_is_changed_together():
    # An iteration of a million steps does not go with the stages that there were, nor the stages with the iteration.
    for total, num_envs in ((12_000_000, 65_536), (240, 4)):
        changes = {"learner.num_envs": num_envs, "learner.unroll_length": 16}
        changed = gorl.reschedule(gorl.preset("PointMass"), total_steps=total, changes=changes)
        assert changed.stage_steps == (total // 3 * 2, total // 3)
        assert changed.learner.num_envs == num_envs


def test_too_few_steps():
    with pytest.raises(gorl.InputError, match="shorter than one iteration"):
        gorl.reschedule(gorl.preset("PointMass"), total_steps=10_000)


@pytest.mark.parametrize("method", ["ppo", "gorl-flow"])
def test_a_task_of_ones_own_has_values_of_its_own(method, counting):
    for env in ("my_robot:Walk", counting()):
        config = gorl.preset(env, method=method)
        assert sum(config.stage_steps) == 10_000_000
        assert config.learner.reward_scale == 1.0
        assert config.env.training_length is None
    shipped = gorl.preset("HopperStand", method=method)
    assert sum(shipped.stage_steps) == 4_000_000
    assert shipped.learner.reward_scale == 10.0
    assert gorl.preset("my_robot:Walk", "paper", method).learner.reward_scale == 10.0
