"""`gorl collect`, `gorl fit` and `--decoder`."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from test_cli import SMALL

import gorl
from gorl_cli._data import read_data
from gorl_cli._run import Run

FIT = ("--set", "decoder.width=16", "--set", "decoder.depth=1", "--set", "decoder.num_steps=4")
SHORT = ("--set", "refinement.num_epochs=3", "--set", "env.episode_length=20")


@pytest.fixture(scope="module")
def collected(finished_run, tmp_path_factory, output_of):
    """The demonstrations of a run's seed 6."""
    path = tmp_path_factory.mktemp("collected") / "data.npz"
    output_of("collect", finished_run.directory, "-o", path, "--episodes", 12, "--seed", 6, "--stochastic")
    return path


@pytest.fixture(scope="module")
def fitted(collected, tmp_path_factory, output_of):
    """The directory that `gorl fit` makes of them, and what it printed."""
    out = tmp_path_factory.mktemp("fitted") / "decoder"
    return out, output_of("fit", collected, "-o", out, *FIT, *SHORT)


def test_collect_writes_the_episodes_that_play_plays(collected, finished_run):
    found = read_data(str(collected))
    policy = gorl.of_seed(finished_run.policies(), 1)
    played = gorl.play(finished_run.config.env, policy, jax.random.key(0), num_episodes=12, stochastic=True)
    lengths = np.asarray(played.length)
    assert found.demonstrations.episode_lengths == tuple(lengths)
    assert found.environment == "MultiGoal"
    for array, steps in (("observations", played.observation), ("actions", played.action)):
        whole = np.concatenate([episode[:length] for episode, length in zip(np.asarray(steps), lengths, strict=True)])
        np.testing.assert_array_equal(getattr(found.demonstrations, array), whole)
    np.testing.assert_allclose(found.returns, np.asarray(played.reward).sum(axis=1), rtol=1e-5)


def test_fit_leaves_a_finished_run_with_its_curve(fitted, collected):
    directory, printed = fitted
    run = Run.open(directory)
    assert run.is_finished
    policy = run.policy(None)
    assert bool(policy.decoder.fitted)
    summary = run.summary()
    assert summary["env_steps"] == 0
    np.testing.assert_allclose(summary["demonstrator_return_mean"], read_data(str(collected)).returns.mean(), rtol=1e-5)
    _, play_key = jax.random.split(jax.random.key(0))
    for name, stochastic in (("best_policy_return_mean", False), ("return_by_draws_mean", True)):
        returns = gorl.evaluate(run.config.env, policy, play_key, num_episodes=64, stochastic=stochastic)
        np.testing.assert_allclose(summary[name], returns.mean(), rtol=1e-4)
    with (directory / "fit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    np.testing.assert_allclose(
        min(float(row["validation_loss"]) for row in rows), summary["validation_loss"], rtol=1e-5
    )
    assert (directory / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert "decoder by draws" in printed


def test_other_commands_take_it(fitted, command, tmp_path):
    directory, _ = fitted
    assert command("eval", directory, "--episodes", 4, "--stochastic")[0] == 0
    assert command("export", directory, "-o", tmp_path / "policy.stablehlo")[0] == 0
    code, _, error = command("resume", directory)
    assert code == 2
    assert "is finished" in error
    code, _, error = command("plot", directory, "-o", tmp_path / "curves.png")
    assert code == 2
    assert "its decoder was fitted and its policy not trained" in error


@pytest.fixture(scope="module")
def trained(fitted, tmp_path_factory, output_of):
    """A run of two stages that began with the decoder."""
    out = tmp_path_factory.mktemp("trained") / "run"
    small = [option for option in SMALL if "decoder" not in option]
    output_of("train", "MultiGoal", "--decoder", fitted[0], "--out", out, "--seeds", 2, *small)
    return out


def test_train_begins_with_the_decoder_and_keeps_a_copy(trained, fitted, assert_same):
    run = Run.open(trained)
    assert run.is_finished
    assert run.config.starts_fitted
    source = Run.open(fitted[0])
    assert run.config.decoder == source.config.decoder
    assert_same(run.first_decoder(), source.policy(None).decoder)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_with_it_again(
    trained, command, tmp_path, assert_same
):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for name in ("checkpoints", "summary.json", "policies.eqx", "curve.csv"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, _, error = command("resume", copy)
    assert code == 0
    assert "has no checkpoint yet" in error
    assert_same(Run.open(copy).policies(), Run.open(trained).policies())


def test_the_decoder_of_any_run_is_taken(trained, command, tmp_path):
    small = [option for option in SMALL if "decoder" not in option and "stage_steps" not in option]
    out = tmp_path / "steered"
    code, _, _ = command(
        "train",
        "MultiGoal",
        "--method",
        "dsrl",
        "--decoder",
        trained,
        "--out",
        out,
        "--seeds",
        1,
        *small,
        "--steps",
        160,
    )
    assert code == 0
    before, after = (Run.open(directory) for directory in (trained, out))
    assert after.config.num_stages == 1
    best = json.loads((trained / "summary.json").read_text())["best_policy_return"]
    index = max(range(2), key=lambda seed: best[str(seed)])
    expected = gorl.of_seed(before.policies(), index).decoder.decoder
    found = gorl.of_seed(after.policies(), 0).decoder.decoder
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(expected))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--set", "learner.discount=0.9"), "--set learner.discount decides nothing here"),
        (("--method", "ppo"), "no decoder to fit"),
        (("--env", "PointMass"), "have observations of size 2, and those of the environment have size"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_and_nothing_is_written(command, collected, tmp_path, options, sentence):
    code, _, error = command("fit", collected, "-o", tmp_path / "decoder", *options)
    assert code == 2
    assert sentence in error
    assert not (tmp_path / "decoder").exists()


def test_data_that_name_no_environment_ask_for_it(command, tmp_path):
    np.savez(tmp_path / "data.npz", observations=np.zeros((2, 3, 2)), actions=np.zeros((2, 3, 2)))
    code, _, error = command("fit", tmp_path / "data.npz", "-o", tmp_path / "decoder")
    assert code == 2
    assert "name it with --env" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--method", "ppo"), "PPO learns actions themselves here"),
        (("--set", "decoder.width=8"), "and should be float32[8"),
        (("--set", "starts_fitted=false"), "set starts_fitted to true"),
    ],
)
def test_a_decoder_that_does_not_go_with_the_run_is_refused(command, fitted, tmp_path, options, sentence):
    code, _, error = command("train", "MultiGoal", "--decoder", fitted[0], "--out", tmp_path / "run", *options)
    assert code == 2
    assert sentence in error
    assert not (tmp_path / "run").exists()


def test_what_holds_no_decoder_is_refused(command, tmp_path):
    code, _, error = command("train", "MultiGoal", "--decoder", tmp_path / "nothing")
    assert code == 2
    assert "is no directory" in error
    code, _, error = command("train", "MultiGoal", "--method", "dsrl", "--out", tmp_path / "run")
    assert code == 2
    assert "--decoder of the command line" in error
    assert not (tmp_path / "run").exists()
