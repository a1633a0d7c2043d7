"""`gorl eval`."""

import json

import jax
import numpy as np
import pytest
import scipy.stats

import gorl
from gorl_cli._run import Run


def expected(run, seed, episodes, key=0, stochastic=False):
    policy = gorl.load_policy(run.directory, seed=seed - run.first_seed)
    return gorl.evaluate(run.config.env, policy, jax.random.key(key), num_episodes=episodes, stochastic=stochastic)


def interval(values):
    """Student's, written out; of a few values the smallest and the largest."""
    if len(values) < 10:
        return [np.mean(values), np.min(values), np.max(values)]
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [np.mean(values), np.mean(values) - half, np.mean(values) + half]


@pytest.mark.parametrize(("options", "how"), [((), {}), (("--stochastic", "--key", 7), {"stochastic": True, "key": 7})])
def test_the_returns_are_those_of_fresh_episodes_with_their_intervals(command, finished_run, options, how):
    code, output, _ = command("eval", finished_run.directory, "--episodes", 12, "--json", *options)
    assert code == 0
    said = json.loads(output)
    assert said["episodes_per_seed"] == 12
    assert list(said["seeds"]) == ["5", "6", "7"]
    means = []
    for seed in finished_run.seed_numbers:
        of_seed = said["seeds"][str(seed)]
        np.testing.assert_allclose(of_seed["returns"], expected(finished_run, seed, 12, **how), rtol=1e-4)
        np.testing.assert_allclose([of_seed[name] for name in ("mean", "low", "high")], interval(of_seed["returns"]))
        means.append(of_seed["mean"])
    # Over the seeds, not over all the episodes, which would make it look surer than it is.
    np.testing.assert_allclose([said["overall"][name] for name in ("mean", "low", "high")], interval(means))


def test_a_table_for_people(command, finished_run):
    code, output, _ = command("eval", finished_run.directory, "--episodes", 4)
    assert code == 0
    for seed in finished_run.seed_numbers:
        assert f"{np.mean(expected(finished_run, seed, 4)):.1f}" in output
    assert "smallest and largest" in output
    assert "95 % interval" not in output  # of four
    assert "all" in output
    _, output, _ = command("eval", finished_run.directory, "--episodes", 12)
    assert "95 % interval" in output


def test_the_policy_of_one_seed(command, finished_run):
    code, output, _ = command("eval", finished_run.directory, "--episodes", 4, "--seed", 6, "--json")
    assert code == 0
    said = json.loads(output)
    assert list(said["seeds"]) == ["6"]
    assert said["overall"] == {name: said["seeds"]["6"][name] for name in ("mean", "low", "high", "low_and_high")}


def test_one_episode_has_no_interval(command, finished_run):
    _, output, _ = command("eval", finished_run.directory, "--episodes", 1, "--seed", 6, "--json")
    overall = json.loads(output)["overall"]
    assert (overall["low"], overall["high"]) == (None, None)
    assert np.isfinite(overall["mean"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--episodes", 0], "--episodes must be at least 1, not 0"),
        (["--episodes", -3], "--episodes must be at least 1, not -3"),
        (["--seed", 4], "no seed 4 in"),
        (["--seed", 8], "it holds seeds 5 to 7"),
    ],
)
def test_bad_input_is_one_sentence(command, finished_run, options, sentence):
    code, output, error = command("eval", finished_run.directory, *options)
    assert code == 2
    assert output == ""
    assert sentence in error
    assert error.count("\n") == 1


def test_without_a_policy(command, finished_run, tmp_path):
    import shutil

    run = shutil.copytree(finished_run.directory, tmp_path / "run")
    (run / "policies.eqx").unlink()
    code, _, error = command("eval", run)
    assert code == 2
    assert "neither policies.eqx nor a checkpoint" in error


@pytest.mark.parametrize("arguments", [("eval",), ("render", "-o", "film.gif")])
def test_a_command_that_the_task_does_not_declare(command, finished_run, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *options = arguments
    code, _, error = command(name, finished_run.directory, *options, "--command", "forward=1.0")
    assert code == 2
    assert "MultiGoal declares no commands: leave env.commands out" in " ".join(error.split())
    assert not list(tmp_path.iterdir())


def test_commands_are_fixed_in_the_environment_alone(finished_run):
    env = finished_run.changed_env(["forward=1.0", "turn=0"])
    assert env.commands == "forward=1.0 turn=0"
    assert gorl.replace(env, {"commands": None}) == finished_run.config.env == finished_run.changed_env(None)


@pytest.fixture(scope="module")
def robot_run(finished_run, make_policy, tmp_path_factory):
    """A run of one seed on CartpoleBalance, whose policy is random."""
    env = gorl.EnvConfig("CartpoleBalance", episode_length=40)
    config = gorl.replace(finished_run.config, {"env": env})
    run = Run(tmp_path_factory.mktemp("robot") / "run", config, "gorl-flow", 0, 1, 30.0)
    run.directory.mkdir()
    run.create()
    gorl.save_policy(run.policies_file, jax.tree.map(lambda leaf: leaf[None], make_policy(5, 1)), config)
    return run


def test_a_table_over_values_of_one_randomization(command, robot_run):
    code, output, _ = command("eval", robot_run.directory, "--episodes", 12, "--vary", "gains=0:1:2", "--json")
    assert code == 0
    without, nominal = json.loads(output)["rows"]
    assert (without["gains"], nominal["gains"]) == (0.0, 1.0)
    _, output, _ = command("eval", robot_run.directory, "--episodes", 12, "--json")
    assert nominal["mean"] == json.loads(output)["seeds"]["0"]["mean"] == nominal["seeds"]["0"]
    assert without["mean"] != nominal["mean"]
    _, output, _ = command("eval", robot_run.directory, "--episodes", 12, "--randomize", "gains=0", "--json")
    assert json.loads(output)["overall"]["mean"] == without["mean"]
    _, output, _ = command("eval", robot_run.directory, "--episodes", 12, "--vary", "gains=0:1:2")
    assert f"{without['mean']:.1f}" in output
    assert f"{nominal['mean']:.1f}" in output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--vary", "gains=0:1"], "--vary gains=0:1 is no grid: write it as friction=0.3:1.2:7"),
        (["--vary", "gians=0:1:2"], "no randomization is called 'gians': did you mean 'gains'"),
        (["--randomize", "gains=2:1"], "the range of gains=2:1 is upside down"),
    ],
)
def test_a_randomization_that_cannot_be_is_one_sentence(command, robot_run, options, sentence):
    code, output, error = command("eval", robot_run.directory, *options)
    assert (code, output) == (2, "")
    assert sentence in " ".join(error.split())
