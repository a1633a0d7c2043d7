"""The benchmark of peers: what it says of bad input, what a run cut short leaves, and what its ratios are made of."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import gorl
from benchmarks import _peer_public, peers

RATES = {
    "benchmarks._peer_gorl": [1.0, 2.0, 300.0, 600.0, 900.0],
    "benchmarks._peer_brax": [5e6, 1.0, 100.0, 200.0, 150.0],
}
SECONDS = {"benchmarks._peer_gorl": 2.0, "benchmarks._peer_brax": 5.0}


def invoke(*arguments):
    return CliRunner().invoke(peers.app, [str(argument) for argument in arguments])


def on_disk(path):
    return json.loads(path.read_text())


@pytest.fixture
def measured(monkeypatch):
    """The runs there have been, with rates and seconds that are known."""
    runs = []

    def run(module, settings):
        runs.append((module, settings))
        return {"steps_per_second": RATES[module], "seconds": SECONDS[module]}

    monkeypatch.setattr(peers, "run", run)
    return runs


@pytest.fixture
def checkout(tmp_path):
    """What is taken for a checkout of the public code."""
    directory = tmp_path / "checkout"
    (directory / "scripts").mkdir(parents=True)
    (directory / "scripts" / "run_gorl_fm.py").write_text("import sys\nprint(sys.argv[1:])\n")
    return directory


@pytest.fixture
def complete(monkeypatch):
    """A Python that has what the public code takes."""
    monkeypatch.setattr(_peer_public, "PACKAGES", ("jax", "numpy"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--iterations", 2), "--iterations must be at least 3 and --repeats at least 1."),
        (("--repeats", 0), "--iterations must be at least 3 and --repeats at least 1."),
        (("--set", "width=3"), f"--set width=3: give NAME=SIZE, NAME of {', '.join(peers.SETTINGS)}."),
        (("--set", "num_envs=ten"), f"--set num_envs=ten: give NAME=SIZE, NAME of {', '.join(peers.SETTINGS)}."),
        (("--peer", "sb3"), "--peer sb3: give one of brax, rejax."),
        (("--public", ".", "--peer", "brax"), "--peer and --public are two comparisons: give one of them."),
    ],
)
def test_bad_input_is_answered_in_one_sentence(tmp_path, measured, arguments, sentence):
    result = invoke(*arguments, "--out", tmp_path)
    assert (result.exit_code, result.stderr) == (2, f"benchmarks.peers: {sentence}\n")
    assert not measured
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("peer", ["brax", "rejax"])
def test_a_peer_that_is_not_installed_is_named(tmp_path, measured, monkeypatch, peer):
    def find_spec(name, package=None):
        return None if name == peer else real(name, package)

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    result = invoke("--peer", peer, "--out", tmp_path)
    assert (result.exit_code, result.stderr) == (2, f"benchmarks.peers: {peer} is not installed: pip install {peer}.\n")
    assert not measured


def test_ratios_leave_out_the_iterations_that_compile(tmp_path, measured):
    result = invoke("--repeats", 2, "--set", "num_envs=64", "--out", tmp_path)
    assert result.exit_code == 0
    assert [module for module, _ in measured] == ["benchmarks._peer_gorl", "benchmarks._peer_brax"] * 2
    content = on_disk(tmp_path / "brax_CartpoleSwingup.json")
    assert content["rate_ratio"] == 600 / 150
    assert content["time_ratio"] == 5 / 2
    assert content["finished"]
    assert content["settings"]["num_envs"] == 64
    assert content["settings"]["steps"] == 64 * 30 * 8 * 6
    assert content["runs"]["brax"]["steps_per_second"] == [RATES["benchmarks._peer_brax"]] * 2
    assert "4.00" in result.stdout


def test_what_is_cut_short_leaves_what_it_had(tmp_path, measured, monkeypatch):
    def run(module, settings):
        if len(measured) == 3:
            raise SystemExit("no more")
        return fake(module, settings)

    fake = peers.run
    monkeypatch.setattr(peers, "run", run)
    assert invoke("--out", tmp_path).exit_code == 1
    content = on_disk(tmp_path / "brax_CartpoleSwingup.json")
    assert (content["runs"]["gorl"]["seconds"], content["runs"]["brax"]["seconds"]) == ([2.0, 2.0], [5.0])
    assert not content["finished"]
    assert "rate_ratio" not in content


def test_a_process_that_fails_is_named(capfd):
    with pytest.raises(SystemExit, match="the run ended with exit code 7; what it said is above"):
        peers.timed_process("the run", [sys.executable, "-c", "print('why'); raise SystemExit(7)"])
    assert "why" in capfd.readouterr().err


def test_what_is_no_checkout_is_refused(tmp_path):
    result = invoke("--public", tmp_path, "--out", tmp_path / "out")
    sentence = f"--public {tmp_path}: there is no scripts/run_gorl_fm.py in it: give a checkout of public GoRL."
    assert (result.exit_code, result.stderr) == (2, f"benchmarks.peers: {sentence}\n")
    assert not list(tmp_path.iterdir())


def test_what_the_public_code_lacks_is_named(tmp_path, checkout, monkeypatch):
    monkeypatch.setattr(_peer_public, "PACKAGES", ("jax", "no-such-package"))
    result = invoke("--public", checkout, "--public-python", sys.executable, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{os.path.abspath(sys.executable)} lacks no-such-package: give with --public-python" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("python", "sentence"),
    [("no-such-python", "there is no such program."), ("false", "it does not run as a Python.")],
)
def test_what_is_no_python_is_refused(checkout, python, sentence):
    result = invoke("--public", checkout, "--public-python", python)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"{sentence}\n")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("learner.policy_width=64", "--set learner.policy_width=64: with --public give NAME=VALUE, NAME of "),
        ("learner.num_envs=ten", "learner.num_envs must be an integer at least 1, not 'ten'."),
        ("stage_steps=100", "a stage of 100 steps is shorter than one iteration"),
    ],
)
def test_sizes_of_pipelines_are_checked_before_anything_runs(tmp_path, checkout, complete, setting, sentence):
    result = invoke("--public", checkout, "--set", setting, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"benchmarks.peers: {sentence}")
    assert not (tmp_path / "out").exists()


def test_pipelines_are_of_the_same_work():
    config = gorl.replace(gorl.preset("CartpoleSwingup", "paper"), peers.PIPELINE)
    assert config.steps_per_iteration == 256 * 30 * 8
    assert config.stage_iterations == (8, 8)
    assert _peer_public.ppo_sizes(config) == {
        "num_envs": 256,
        "unroll_length": 30,
        "batch_size": 256,
        "num_minibatches": 8,
        "num_updates_per_batch": 4,
        "num_evals": 5,
    }
    assert _peer_public.arguments(config) == [
        *("--env_name", "CartpoleSwingup", "--num_stages", "2"),
        *("--encoder_timesteps_per_stage", "491520,491520", "--data_collection_iterations", "5"),
        *("--fm_batch_size", "2048", "--fm_num_epochs", "10"),
    ]
    stages = gorl.make_schedule(config).curve.stage
    assert [int(sum(stages == stage)) for stage in (0, 1)] == [5, 5]
    fitted = (config.refinement.num_episodes - config.refinement.num_validation_episodes) * 1000
    assert fitted // config.refinement.batch_size == 307_200 * 9 // 10 // 2048


def test_the_ratio_of_pipelines_is_that_of_their_seconds(tmp_path, checkout, complete, monkeypatch):
    monkeypatch.setattr(peers, "run_pipeline", lambda *_: {"seconds": 4.0})
    monkeypatch.setattr(peers, "run_public_pipeline", lambda *_: {"seconds": 10.0})
    result = invoke("--public", checkout, "--set", "stage_steps=61440,61440", "--out", tmp_path / "out")
    assert result.exit_code == 0
    content = on_disk(tmp_path / "out" / "public_CartpoleSwingup.json")
    assert content["runs"] == {"gorl": {"seconds": [4.0]}, "public": {"seconds": [10.0]}}
    assert content["time_ratio"] == 2.5
    assert content["settings"]["stage_steps"] == [61_440, 61_440]
    assert "2.50" in result.stdout


def test_pipelines_cut_short_leave_what_they_had(tmp_path, checkout, complete, monkeypatch):
    def fail(*_):
        raise SystemExit("no more")

    monkeypatch.setattr(peers, "run_pipeline", lambda *_: {"seconds": 4.0})
    monkeypatch.setattr(peers, "run_public_pipeline", fail)
    assert invoke("--public", checkout, "--out", tmp_path / "out").exit_code == 1
    content = on_disk(tmp_path / "out" / "public_CartpoleSwingup.json")
    assert content["runs"] == {"gorl": {"seconds": [4.0]}, "public": {}}
    assert not content["finished"]


def test_our_pipeline_is_the_commands(monkeypatch):
    def timed_process(name, command):
        commands.append(command)
        run = pathlib.Path(command[command.index("--out") + 1])
        run.mkdir()
        (run / "summary.json").write_text('{"best_policy_return_mean": 7.0}')
        return "", 1.0

    commands = []
    monkeypatch.setattr(peers, "timed_process", timed_process)
    run = peers.run_pipeline("CartpoleSwingup", peers.PIPELINE)
    assert run == {"seconds": 1.0, "best_policy_return": 7.0}
    (command,) = commands
    assert command[1:7] == ["-m", "gorl_cli", "--cache", "off", "train", "CartpoleSwingup"]
    assert "stage_steps=500000,500000" in command
    preset = gorl.preset("CartpoleSwingup", "paper")
    given = [text.partition("=") for option, text in itertools.pairwise(command) if option == "--set"]
    assert {name: gorl.internal.parse(preset, name, text) for name, _, text in given} == peers.PIPELINE


def test_the_public_code_is_told_the_sizes_and_left_as_it_is(tmp_path, checkout, complete):
    """A pipeline that starts `python`, which asks MuJoCo Playground as the public code does."""
    package = tmp_path / "site" / "mujoco_playground" / "config"
    package.mkdir(parents=True)
    for directory in (package, package.parent):
        (directory / "__init__.py").touch()
    (package / "dm_control_suite_params.py").write_text("def brax_ppo_config(task):\n    return {'discounting': 0.5}\n")
    (checkout / "scripts" / "ask.py").write_text(
        "from mujoco_playground.config import dm_control_suite_params\n"
        "print(dm_control_suite_params.brax_ppo_config('CartpoleSwingup'))\n"
    )
    (checkout / "scripts" / "run_gorl_fm.py").write_text(
        "import pathlib, subprocess\n"
        "pathlib.Path('results').mkdir()\n"
        "subprocess.run('python scripts/ask.py', shell=True, check=True)\n"
    )
    before = sorted(checkout.rglob("*"))
    config = gorl.replace(gorl.preset("CartpoleSwingup", "paper"), peers.PIPELINE)
    directory = tmp_path / "process"
    directory.mkdir()
    command, options = _peer_public.PublicCode.find(checkout, None).process(directory, config)
    options["env"]["PYTHONPATH"] += os.pathsep + str(tmp_path / "site")
    done = subprocess.run(command, capture_output=True, text=True, check=True, **options)
    assert done.stdout == f"{ {'discounting': 0.5, **_peer_public.ppo_sizes(config)} }\n"
    assert sorted(checkout.rglob("*")) == before
