"""The command line, called in this process: `main` with arguments, as the installed script calls it."""

import csv
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import gorl
from gorl_cli._run import make_directory

# Two stages of three iterations each: as small as a run can be and still do everything.
SMALL = [
    "--set=learner.num_envs=16",
    "--set=learner.unroll_length=5",
    "--set=learner.num_minibatches=2",
    "--set=learner.policy_width=8",
    "--set=learner.value_width=8",
    "--set=env.episode_length=10",
    "--set=decoder.width=8",
    "--set=refinement.num_episodes=8",
    "--set=refinement.num_validation_episodes=2",
    "--set=refinement.batch_size=20",
    "--set=refinement.num_epochs=2",
    "--set=evaluation_episodes=4",
    "--set=stage_steps=240,240",
]


def test_train_leaves_everything_that_it_promises(command, tmp_path):
    directory = tmp_path / "my run [v1] :cat:"  # as it is, whatever rich takes for markup
    code, output, _ = command("train", "MultiGoal", "--seeds", 2, "--seed", 5, "--out", directory, *SMALL)
    assert code == 0
    assert "best policies on 4 fresh episodes" in output
    assert output.endswith(f" are in {directory}\n")
    assert sorted(path.name for path in directory.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "curve.csv",
        "curve.png",
        "policies.eqx",
        "run.json",
        "summary.json",
    ]
    config = gorl.Config.from_json((directory / "config.json").read_text())
    assert config.learner.num_envs == 16

    with (directory / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:9] == [
        "seed",
        "stage",
        "env_steps",
        "wall_seconds",
        "return_mean",
        "return_std",
        "return_min",
        "return_max",
        "diverged_at",
    ]
    assert {row["seed"] for row in rows} == {"5", "6"}
    assert {row["stage"] for row in rows} == {"0", "1"}
    assert rows[-1]["env_steps"] == "480"

    # The curve and the policies are those of the Python loop over the same keys.
    keys = jax.vmap(jax.random.key)(np.array([5, 6], np.uint32))
    *_, (_, state) = gorl.iterate(config, keys)
    result = gorl.finish(config, state)
    of_seed = [float(row["return_mean"]) for row in rows if row["seed"] == "6"]
    np.testing.assert_allclose(of_seed, result.curve.mean_return[1], rtol=1e-6)
    policy = gorl.load_policy(directory, seed=1, env="MultiGoal")
    expected = jax.tree.map(lambda leaf: leaf[1], result.policy)
    assert all(map(np.array_equal, jax.tree.leaves(policy), jax.tree.leaves(expected)))
    summary = json.loads((directory / "summary.json").read_text())
    np.testing.assert_allclose(summary["best_policy_return"]["6"], np.mean(result.returns[1]), rtol=1e-6)


def test_output_that_is_no_terminal_is_plain_lines(command, tmp_path):
    small = [option for option in SMALL if "stage_steps" not in option]
    options = ["--seeds", 1, "--stages", 1, "--steps", 240, "--out", tmp_path / "run"]
    code, output, _ = command("train", "MultiGoal", *options, *small)
    assert code == 0
    assert "\x1b" not in output
    assert "\r" not in output
    assert "compiling" in output
    assert sum("env steps  " in line for line in output.splitlines()) >= 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["PointMas"], "'PointMass'"),
        (["PointMass", "--scale", "papper"], "'paper'"),
        (["PointMass", "--seeds", "0"], "--seeds must be at least 1"),
        (["PointMass", "--seed", "-1"], "--seed must be at least 0"),
        (["PointMass", "--steps", "-5"], "--steps must be at least 1"),
        (["PointMass", "--steps", "many"], "--steps must be a whole number"),
        (["PointMass", "--steps", "100"], "shorter than one iteration"),
        (["PointMass", "--stages", "0"], "--stages must be at least 1"),
        (["PointMass", "--set", "learner.learning_rte=1"], "'learning_rate'"),
        (["PointMass", "--set", "lerner.clip=1"], "'learner'"),
        (["PointMass", "--set", "learner.clip_epsilon"], "FIELD=VALUE"),
        (["PointMass", "--set", "learner.clip_epsilon=high"], "learner.clip_epsilon must be a number above 0"),
        (["PointMass", "--set", "learner.clip_epsilon=0"], "learner.clip_epsilon must be a number above 0"),
        (["PointMass", "--set", "learner.discount=1.5"], "at most 1"),
        (["PointMass", "--set", "learner.num_minibatches=7"], "does not divide"),
        (["PointMass", "--set", "learner=SAC"], "group of fields"),
        (["PointMass", "--set", "decoder.solver=Eulr"], "'Euler'"),
        (
            ["PointMass", "--set", "env.training_length=null"],
            "env.training_length must be an integer at least 1, or none, not 'null'",
        ),
        (["PointMass", "--set", "decoder.num_steps=0"], "decoder.num_steps must be an integer at least 1"),
        (["PointMass", "--set", "stage_steps=800000", "--steps", "1e6"], "--set stage_steps says what --steps would"),
        (["PointMass", "--set", "stage_steps=800000", "--stages", "1"], "--set stage_steps says what --stages would"),
        (["./envs.py:Walk"], "write envs:Walk."),
        (["PointMass", "--method", "gorl-flo"], "'gorl-flow'"),
        (["PointMass", "--method", "no_such_module:method"], "cannot be imported"),
        (["PointMass", "--method", "ppo", "--stages", "2"], "one stage"),
        (["PointMass", "--method", "dppo", "--set", "learner.num_steps=0"], "learner.num_steps must be"),
        (["PointMass", "--method", "gorl-diffusion", "--set", "decoder.schedule=cosin"], "'cosine'"),
        (["PointMass", "--method", "gorl-sac", "--set", "learner.buffer_size=200"], "smaller than"),
        (["PointMass", "--method", "sac", "--set", "learner.memory_limit=1"], "MiB"),
        (["PointMass", "--method", "sac", "--seeds", "1000000"], "the state of 1,000,000 seeds takes"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(command, tmp_path, arguments, sentence):
    code, output, error = command("train", *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert output == ""
    assert sentence in error
    assert error.startswith("gorl: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def not_followed(monkeypatch):
    """Runs are begun, and end there: nothing is compiled."""
    monkeypatch.setattr("gorl_cli._train.train_groups", lambda *_: 0)


@pytest.mark.usefixtures("not_followed")
def test_what_is_set_by_hand_goes_before_what_follows_from_the_steps(command, tmp_path):
    small = [option for option in SMALL if "stage_steps" not in option]
    options = ["--steps", 6000, "--stages", 3, "--set=evaluation_interval=320"]
    assert command("train", "MultiGoal", "--out", tmp_path / "run", *options, *small)[0] == 0
    config = gorl.Config.from_json((tmp_path / "run" / "config.json").read_text())
    assert config.stage_steps == (2000, 2000, 2000)
    assert config.evaluation_interval == 320


@pytest.mark.usefixtures("not_followed")
def test_config_prints_the_config_that_train_would_train(command, tmp_path):
    small = [option for option in SMALL if "stage_steps" not in option]
    options = ["MultiGoal", "--method", "gorl-diffusion", "--scale", "paper", "--steps", "6e4", "--stages", 3, *small]
    code, output, error = command("config", *options)
    assert (code, error) == (0, "")
    assert command("train", *options, "--out", tmp_path / "run")[0] == 0
    assert output == (tmp_path / "run" / "config.json").read_text()
    config = gorl.Config.from_json(output)
    assert config.stage_steps == (24_000, 24_000, 12_000)
    assert isinstance(config.decoder, gorl.Diffusion)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["PointMass", "--method", "gorl-flo"], "'gorl-flow'"),
        (["PointMass", "--set", "learner.clip_epsilon=0"], "learner.clip_epsilon must be a number above 0"),
        (["PointMass", "--steps", "100"], "shorter than one iteration"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(command, arguments, sentence):
    code, output, error = command("config", *arguments)
    assert (code, output) == (2, "")
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("not_followed")
def test_runs_that_begin_at_the_same_moment_have_directories_of_their_own(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "20261125-120000")
    for seed in range(3):
        assert command("train", "MultiGoal", "--seeds", 1, "--seed", seed, *SMALL)[0] == 0
    begun = sorted((tmp_path / "runs").iterdir())
    name = "MultiGoal-gorl-flow-20261125-120000"
    assert [path.name for path in begun] == [name, f"{name}-2", f"{name}-3"]
    assert [json.loads((path / "run.json").read_text())["first_seed"] for path in begun] == [0, 1, 2]


def test_only_one_process_makes_a_directory(tmp_path):
    made = [make_directory(tmp_path / "runs" / "v1.5", is_named=False) for _ in range(3)]
    assert [path.name for path in made] == ["v1.5", "v1.5-2", "v1.5-3"]
    assert all(path.is_dir() for path in made)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(gorl.InputError, match="cannot be made"):
        make_directory(tmp_path / "nowhere" / "run", is_named=False)


def test_bad_input_leaves_no_directory_of_its_own_either(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "sweep"):
        assert command(name, "MultiGoal", *SMALL, "--set=refinement.stride=11")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("not_followed")
def test_a_run_that_came_and_went_meanwhile_is_left_as_it_is(command, tmp_path, monkeypatch):
    def iterate(*_, **__):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("precious")

    monkeypatch.setattr(gorl, "iterate", iterate)
    code, _, error = command("train", "MultiGoal", "--out", tmp_path / "run", *SMALL)
    assert code == 2
    assert "already in use" in error
    assert (tmp_path / "run" / "run.json").read_text() == "precious"


@pytest.mark.parametrize("platform", ["cuda", "cuad"])
def test_devices_that_are_not_there_are_one_sentence(tmp_path, platform):
    if platform == jax.default_backend().replace("gpu", "cuda"):
        pytest.skip("they are there")
    done = subprocess.run(
        [sys.executable, "-m", "gorl_cli", "train", "MultiGoal", "--out", tmp_path / "run"],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    asked = f"JAX_PLATFORMS={platform} asks for: unset it, or set it to cpu"
    assert done.stderr.startswith(f"gorl: JAX cannot compute on the devices that {asked}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_left_as_it_is(command, tmp_path):
    (tmp_path / "curve.csv").write_text("precious")
    code, _, error = command("train", "MultiGoal", "--out", tmp_path)
    assert code == 2
    assert "already in use" in error
    assert (tmp_path / "curve.csv").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_the_way_of_the_directory(command, tmp_path):
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, error = command("train", "MultiGoal", "--out", out)
        assert code == 2
        assert "--out" in error
    assert (tmp_path / "file").read_text() == "precious"


def test_an_unwritable_directory(command, tmp_path, monkeypatch):
    # Permissions do not bind root, who runs the tests in many containers: answer as the system would.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, _, error = command("train", "MultiGoal", "--out", tmp_path / "run")
    assert code == 2
    assert "cannot be written" in error
    assert list(tmp_path.iterdir()) == []


def test_envs_lists_names_and_sizes(command):
    code, output, _ = command("envs")
    assert code == 0
    for name in gorl.environments():
        assert name in output
    code, output, _ = command("envs", "cheetah")
    assert code == 0
    assert "CheetahRun" in output
    assert "brax/halfcheetah" in output
    assert "PointMass" not in output
    assert command("envs", "nothing like it")[0] == 2


def test_methods_lists_every_method(command):
    code, output, _ = command("methods")
    assert code == 0
    for name, method in gorl.methods().items():
        assert f" {name} " in output
        assert type(method.learner).__name__ in output


def test_a_baseline_trains_in_one_stage_under_its_name(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [option for option in SMALL if "stage_steps" not in option and "decoder" not in option]
    code, output, _ = command("train", "MultiGoal", "--method", "dppo", "--steps", 240, "--seeds", 1, *small)
    assert code == 0
    assert "dppo on MultiGoal: 1 seed, 1 stage, 240 env steps" in output
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("MultiGoal-dppo-")
    assert json.loads((directory / "summary.json").read_text())["method"] == "dppo"


def test_help_and_version_need_neither_gorl_nor_jax():
    for option in ("--help", "--version"):
        script = (
            "import sys, gorl_cli.__main__ as a\n"
            f"sys.argv = ['gorl', '{option}']\n"
            "try:\n    a.main()\nexcept SystemExit:\n    pass\n"
            "assert 'jax' not in sys.modules and 'gorl' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "gorl" in done.stdout
