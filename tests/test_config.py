import dataclasses
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gorl

# --- A config is a value. ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learner.learning_rate": 0.1 + 0.2},
        {"learner.learning_rate": 1e-45},
        {"learner.learning_rate": 5e-324},  # the smallest double there is
        {"learner.reward_scale": 1.7976931348623157e308},
        {"learner.discount": math.nextafter(1.0, 0.0)},
        {"learner.max_gradient_norm": math.inf},
        {"learner.clip_epsilon": 1},
        {"learner.latent_coefficient": 0.0, "learner.entropy_coefficient": 0.0},
        {"stage_steps": (2**40, 2**62)},
        {"stage_steps": (60_000_000,), "decoder": gorl.Identity()},
        {"decoder.solver": "Tsit5", "decoder.rtol": 1e-3, "decoder.atol": 1e-6},
        {"refinement.patience": 7, "refinement.stride": 4},
        {"env": "MultiGoal", "env.episode_length": 20, "env.training_length": 10, "env.action_repeat": 2},
        {"env": "brax/ant", "env.backend": "mjx"},
        {"env": "CheetahRun", "env.implementation": "jax"},
    ],
)
def test_json_round_trip_is_exact(changes):
    if isinstance(changes.get("env"), str):
        changes = changes | {"env": gorl.EnvConfig(changes["env"])}
    config = gorl.replace(gorl.Config("PointMass"), changes)
    restored = gorl.Config.from_json(config.to_json())
    assert restored == config
    assert jax.tree.leaves(restored) == jax.tree.leaves(config)
    assert jax.tree.structure(restored) == jax.tree.structure(config)
    assert restored.to_json() == config.to_json()


def test_json_is_json_for_everyone(tiny):
    # Python would write Infinity, which no other reader takes.
    config = gorl.replace(tiny, {"learner.max_gradient_norm": math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(config.to_json(), parse_constant=refuse)["learner"]["max_gradient_norm"] == "inf"


def test_json_may_leave_fields_out():
    config = gorl.Config.from_json('{"env": {"name": "MultiGoal"}, "learner": {"type": "PPO", "clip_epsilon": 0.1}}')
    assert config == gorl.Config(env="MultiGoal", learner=gorl.PPO(clip_epsilon=0.1))


def test_array_scalars_are_written_as_the_numbers_they_are(tiny):
    for rate in (np.float64(0.1), np.float32(0.1), jnp.float32(0.1), np.asarray(0.1)):
        config = gorl.replace(tiny, {"learner.learning_rate": rate})
        assert gorl.Config.from_json(config.to_json()).learner.learning_rate == float(rate)


def test_printing_shows_every_value(tiny):
    text = str(gorl.replace(tiny, {"learner.learning_rate": 0.0123, "env.training_length": 7}))
    for part in ("PPO(", "FlowMatching(", "Refinement(", "'MultiGoal'", "learning_rate=0.0123", "training_length=7"):
        assert part in text
    assert "(800, 800)" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"learner.clip_epsilon": 0.21},
        {"learner.num_envs": 32},
        {"env": gorl.EnvConfig("MultiGoal")},
        {"decoder.solver": "Heun"},
        {"decoder": gorl.FlowMatching(width=9, depth=1, num_steps=2)},
        {"refinement.patience": 3},
        {"stage_steps": (800, 960)},
    ],
)
def test_configs_differ_in_any_value(tiny, changes):
    assert tiny == gorl.replace(tiny, {})
    assert gorl.replace(tiny, changes) != tiny
    assert gorl.replace(tiny, changes) == gorl.replace(tiny, changes)


def test_a_config_cannot_be_changed_in_place(tiny):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.stage_steps = (1,)


def test_an_integer_for_a_real_number_is_that_number():
    # Otherwise 1 and 1.0 would be compiled twice.
    assert gorl.PPO(clip_epsilon=1) == gorl.PPO(clip_epsilon=1.0)
    assert isinstance(gorl.PPO(clip_epsilon=1).clip_epsilon, float)


# --- Leaves are what can be trained in one batch; everything else is static. ---

LEAVES = {
    *(
        f".learner.{name}"
        for name in (
            "learning_rate",
            "learning_rate_decay",
            "max_gradient_norm",
            "discount",
            "gae_lambda",
            "reward_scale",
            "clip_epsilon",
            "entropy_coefficient",
            "value_loss_coefficient",
            "latent_coefficient",
        )
    ),
    ".decoder.rtol",
    ".decoder.atol",
    ".refinement.patience",
    ".refinement.learning_rate",
    ".stage_margin",
}


def test_numbers_that_decide_no_shape_are_leaves():
    config = gorl.Config("PointMass", decoder=gorl.FlowMatching(solver="Tsit5", rtol=1e-3, atol=1e-3))
    assert {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(config)} == LEAVES


def test_every_real_field_is_a_leaf_and_every_other_integer_is_static():
    config = gorl.Config("PointMass", decoder=gorl.FlowMatching(solver="Tsit5", rtol=1e-3, atol=1e-3))
    static = set()
    for group, prefix in (
        (config.learner, ".learner"),
        (config.decoder, ".decoder"),
        (config.refinement, ".refinement"),
    ):
        for field in dataclasses.fields(group):
            name, value = f"{prefix}.{field.name}", getattr(group, field.name)
            assert (name in LEAVES) == (not field.metadata.get("static", False)), name
            assert name in LEAVES or not isinstance(value, float), name
            if name not in LEAVES:
                static.add(name)
    assert {".learner.num_envs", ".learner.num_minibatches", ".decoder.num_steps", ".refinement.num_epochs"} <= static


def test_a_batch_of_hyperparameters_is_a_config(tiny):
    config = gorl.replace(
        tiny, {"learner.learning_rate": jnp.asarray([1e-3, 1e-4]), "learner.clip_epsilon": np.asarray([0.1, 0.2])}
    )
    assert config.learner.learning_rate.shape == (2,)
    rates = eqx.filter_vmap(lambda c: c.learner.learning_rate)(config)
    np.testing.assert_array_equal(rates, config.learner.learning_rate)


def test_sizes_of_a_run(tiny):
    assert tiny.num_stages == 2
    assert tiny.steps_per_iteration == 16 * 5 * 2
    assert tiny.stage_iterations == (5, 5)
    assert tiny.iterations_per_evaluation == 2
    repeated = gorl.replace(tiny, {"env.action_repeat": 3})
    assert repeated.steps_per_iteration == 3 * 16 * 5 * 2


# --- Changing values by dotted name. ---


def test_replace_changes_what_it_names_and_nothing_else(tiny):
    changed = gorl.replace(tiny, {"learner.clip_epsilon": 0.1, "evaluation_episodes": 5})
    assert changed.learner.clip_epsilon == 0.1
    assert changed.evaluation_episodes == 5
    assert gorl.replace(changed, {"learner.clip_epsilon": tiny.learner.clip_epsilon, "evaluation_episodes": 4}) == tiny


def test_replace_takes_values_that_only_fit_together(tiny):
    with pytest.raises(gorl.InputError, match="does not divide"):
        gorl.replace(tiny, {"learner.num_minibatches": 7})
    changed = gorl.replace(tiny, {"learner.num_minibatches": 7, "learner.num_envs": 14})
    assert changed.learner.num_envs == 14
    # One alone is refused whichever comes first.
    with pytest.raises(gorl.InputError, match="identity decoder"):
        gorl.replace(tiny, {"decoder": gorl.Identity()})
    assert gorl.replace(tiny, {"decoder": gorl.Identity(), "stage_steps": (800,)}).num_stages == 1


def test_replace_changes_a_group_and_values_inside_it(tiny):
    changed = gorl.replace(tiny, {"refinement.patience": 5, "refinement": gorl.Refinement(num_epochs=9)})
    assert changed.refinement == gorl.Refinement(num_epochs=9, patience=5)


def test_replace_works_on_a_group_by_itself():
    assert gorl.replace(gorl.PPO(), {"clip_epsilon": 0.1}) == gorl.PPO(clip_epsilon=0.1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learner.learning_rat", "field of PPO is called 'learning_rat': did you mean 'learning_rate'"),
        ("lerner.clip", "field of Config is called 'lerner': did you mean 'learner'"),
        ("learner.Clip", "did you mean 'clip_epsilon'"),
        ("decoder.stepz", "'stepz': did you mean 'num_steps'"),
        ("stage_steps.first", "stage_steps has no fields of its own"),
        ("learner.clip_epsilon.epsilon", "clip_epsilon has no fields of its own"),
        ("", "no field of Config is called ''"),
        ("zzz", "no field of Config is called 'zzz': there are 'decoder', 'env'"),
    ],
)
def test_replace_answers_an_unknown_name_with_the_nearest(tiny, name, hint):
    with pytest.raises(gorl.InputError, match=hint):
        gorl.replace(tiny, {name: 1})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learner", "learner is a group of fields: set one of learner.num_envs, "),
        ("decoder", "decoder is a group of fields: Identity has none to set."),
        ("decoder.width", "no field of Identity is called 'width': there is none."),
    ],
)
def test_a_group_cannot_be_set_as_a_whole(name, hint):
    with pytest.raises(gorl.InputError, match=hint):
        gorl.internal.parse(gorl.preset("PointMass", method="ppo"), name, "3")


# --- Bad values. ---

OUT_OF_RANGE = [
    ("learner.num_envs", 0),
    ("learner.num_envs", -2048),
    ("learner.unroll_length", 0),
    ("learner.num_unrolls", 0),
    ("learner.num_minibatches", 0),
    ("learner.num_epochs", 0),
    ("learner.policy_width", 0),
    ("learner.value_depth", 0),
    ("learner.clip_epsilon", 0.0),
    ("learner.clip_epsilon", -0.2),
    ("learner.discount", 1.01),
    ("learner.discount", -0.01),
    ("learner.gae_lambda", 1.5),
    ("learner.learning_rate", math.nan),
    ("learner.learning_rate", 0.0),
    ("learner.learning_rate", -1e-3),
    ("learner.learning_rate", np.asarray([1e-3, -1e-3])),
    ("learner.learning_rate", np.asarray([1e-3, math.nan])),
    ("learner.max_gradient_norm", 0.0),
    ("learner.reward_scale", 0.0),
    ("learner.entropy_coefficient", -1e-9),
    ("learner.value_loss_coefficient", -1.0),
    ("learner.latent_coefficient", -1.0),
    ("decoder.width", 0),
    ("refinement.num_noise_samples", 0),
    ("decoder.num_steps", 0),
    ("refinement.num_episodes", 1),
    ("refinement.num_validation_episodes", 0),
    ("refinement.batch_size", 0),
    ("refinement.num_epochs", 0),
    ("refinement.patience", 0),
    ("refinement.learning_rate", 0.0),
    ("refinement.stride", 0),
    ("env.episode_length", 0),
    ("env.training_length", -1),
    ("env.action_repeat", 0),
    ("stage_steps", (-800, 800)),
    ("stage_steps", (0,)),
    ("evaluation_interval", 0),
    ("evaluation_interval", -1),
    ("evaluation_episodes", 0),
]

OF_THE_WRONG_KIND = [
    ("learner.num_envs", True),
    ("learner.num_envs", 16.0),
    ("learner.num_envs", "abc"),
    ("learner.num_envs", "16"),
    ("learner.num_envs", None),
    ("learner.num_envs", (16,)),
    ("learner.num_envs", [16, 32]),
    ("learner.num_envs", 2**70),
    ("learner.num_epochs", None),
    ("learner.clip_epsilon", True),
    ("learner.clip_epsilon", "abc"),
    ("learner.clip_epsilon", "0.2"),
    ("learner.clip_epsilon", None),
    ("learner.clip_epsilon", 1j),
    ("learner.discount", [0.9, [0.9]]),
    ("refinement.patience", 3.0),
    ("refinement.patience", None),
    ("env.action_repeat", 1.5),
    ("env.action_repeat", None),
    ("stage_steps", 800),
    ("stage_steps", (800.0, 800)),
    ("stage_steps", (800, None)),
    ("stage_steps", ((800, 800),)),
    ("stage_steps", "800"),
    ("stage_steps", None),
    ("evaluation_episodes", (4,)),
    ("evaluation_interval", None),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name(tiny, name, value):
    with pytest.raises(gorl.InputError, match=rf"{name.split('.')[-1]} must be .*, not "):
        gorl.replace(tiny, {name: value})


@pytest.mark.parametrize(("name", "value"), OF_THE_WRONG_KIND)
def test_a_value_of_the_wrong_kind_is_refused_by_name(tiny, unchecked, name, value):
    with pytest.raises(gorl.InputError, match=name.split(".")[-1]):
        gorl.replace(tiny, {name: value})


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("num_envs", "null"),
        ("num_envs", "16.0"),
        ("num_envs", '"16"'),
        ("num_envs", "[16]"),
        ("num_envs", "true"),
        ("num_envs", '{"value": 16}'),
        ("clip_epsilon", "null"),
        ("clip_epsilon", "[0.1, 0.2]"),
        ("clip_epsilon", '"0.2"'),
        ("clip_epsilon", "{}"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_is_refused_by_name(unchecked, name, written):
    with pytest.raises(gorl.InputError, match=name):
        gorl.Config.from_json(f'{{"env": {{"name": "PointMass"}}, "learner": {{"type": "PPO", "{name}": {written}}}}}')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_steps": (800, 159)}, r"a stage of 159 steps is shorter than one iteration, which takes 160"),
        ({"stage_steps": ()}, "stage_steps is empty: give"),
        ({"learner.num_minibatches": 3}, r"num_minibatches = 3 does not divide the 160 steps"),
        ({"decoder": gorl.Identity()}, "identity decoder cannot be refined: give it one stage"),
        ({"decoder.solver": "Eulr"}, "'Eulr': did you mean 'Euler'"),
        ({"decoder.solver": "Kvaerno3"}, "no explicit diffrax solver is called 'Kvaerno3'"),
        ({"decoder.solver": "Tsit5", "decoder.rtol": 1e-3}, "rtol and decoder.atol belong together"),
        ({"decoder.rtol": 1e-3, "decoder.atol": 1e-3}, "Euler does not: try Tsit5"),
    ],
)
def test_values_that_do_not_go_together(tiny, changes, message):
    with pytest.raises(gorl.InputError, match=message):
        gorl.replace(tiny, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refinement.stride": 21}, "stride = 21 is more than the 20 steps"),
        ({"refinement.stride": 20}, "batch_size = 20 is more than the 6 pairs"),
        ({"refinement.num_validation_episodes": 8}, "num_validation_episodes = 8 leaves none of the 8 episodes"),
        ({"refinement.batch_size": 121}, "batch_size = 121 is more than the 120 pairs"),
    ],
)
def test_a_refinement_that_does_not_fit_the_episodes_is_refused_before_training(tiny, compilations, changes, message):
    config, key = gorl.replace(tiny, changes), jax.random.key(0)
    compilations.clear()  # making a key compiles something
    with pytest.raises(gorl.InputError, match=message):
        gorl.train(config, key)
    assert not compilations


def test_one_stage_does_not_care_about_the_refinement(tiny):
    config = gorl.replace(tiny, {"refinement.batch_size": 121, "stage_steps": (800,)})
    # Tracing it is enough to see that it is taken.
    jax.eval_shape(lambda key: gorl.train(config, key), jax.random.key(0))


# --- Files that are no config. ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a whole JSON text"),
        ("{", "not a whole JSON text"),
        ("env: PointMass", "not a whole JSON text"),
        ("[]", "must be a group of fields"),
        ("3", "must be a group of fields"),
        ("null", "must be a group of fields"),
        ("{}", "the configuration has no env: give it one"),
        ('{"env": {}}', "env has no env.name: give it one"),
        ('{"learner": 3}', "learner must be a group of fields, not 3"),
        ('{"env": "PointMass"}', "env must be a group of fields"),
        ('{"stage_step": [1]}', "no field of Config is called 'stage_step': did you mean 'stage_steps'"),
        (
            '{"learner": {"type": "PPO", "klip_epsilon": 0.1}}',
            "no field of PPO is called 'klip_epsilon': did you mean 'clip_epsilon'",
        ),
        ('{"learner": {"type": "PPPO"}}', "no learner.type is called 'PPPO': did you mean 'PPO'"),
        ('{"learner": {"type": 3}}', "no learner.type is called '3'"),
        ('{"learner": {"type": "FlowMatching"}}', "no learner.type is called 'FlowMatching'"),
        ('{"learner": {}}', "no learner.type is called 'None'"),
        ('{"decoder": {"type": "Flow"}}', "no decoder.type is called 'Flow': did you mean 'FlowMatching'"),
        ('{"decoder": {"type": "Identity", "width": 3}}', "no field of Identity is called 'width'"),
        ('{"env": {"name": "CheetaRun"}}', "'CheetaRun': did you mean 'CheetahRun'"),
        ('{"env": {"name": "PointMass"}, "learner": {"type": "PPO", "discount": 1.01}}', "discount must be a number"),
        ('{"env": {"name": "PointMass"}, "learner": {"type": "PPO", "discount": NaN}}', "discount must be a number"),
    ],
)
def test_a_text_that_is_no_config(unchecked, text, message):
    with pytest.raises(gorl.InputError, match=message):
        gorl.Config.from_json(text)


def test_a_file_cut_short_anywhere(tiny):
    text = tiny.to_json().rstrip()
    for length in range(0, len(text), 7):
        with pytest.raises(gorl.InputError, match="not a whole JSON text"):
            gorl.Config.from_json(text[:length])


def test_a_batch_cannot_be_written(tiny):
    config = gorl.replace(tiny, {"learner.learning_rate": jnp.asarray([1e-3, 1e-4])})
    with pytest.raises(gorl.InputError, match="learning_rate is a batch of 2 values: write one"):
        config.to_json()


def test_an_environment_without_a_name_cannot_be_written(counting):
    with pytest.raises(gorl.InputError, match=r"name is a Python object, .*give it by name"):
        gorl.Config(env=counting()).to_json()


def test_a_schedule_of_noise_can_be_typed():
    config = gorl.Config("PointMass", decoder=gorl.Diffusion())
    assert gorl.internal.parse(config, "decoder.schedule", "0.9,0.5") == (0.9, 0.5)
    assert gorl.internal.parse(config, "decoder.schedule", "linear") == "linear"
    with pytest.raises(gorl.InputError, match=r"decoder.schedule must be a name or numbers"):
        gorl.internal.parse(config, "decoder.schedule", "0.9,half")
