"""What the README shows has to work."""

import csv
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
import scipy.stats
from quick import quick_environment

import gorl

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_method_of_the_readme_trains(tmp_path, monkeypatch):
    (example,) = re.findall(r"<!-- method example -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_method.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    config = gorl.preset("MultiGoal", method="my_method:prior")
    assert gorl.methods()["gorl-prior"].learner == type(config.learner)()
    sizes = {"num_envs": 16, "unroll_length": 5, "num_minibatches": 2, "num_epochs": 2, "policy_width": 8}
    config = gorl.replace(
        config,
        {
            **{f"learner.{name}": value for name, value in sizes.items()},
            "refinement.num_episodes": 8,
            "refinement.num_validation_episodes": 2,
            "refinement.batch_size": 20,
            "refinement.num_epochs": 2,
            "stage_steps": (160, 160),
            "evaluation_interval": 80,
            "evaluation_episodes": 4,
        },
    )
    assert gorl.Config.from_json(config.to_json()) == config
    result = gorl.train(config, jax.random.key(0))
    assert np.isfinite(result.curve.mean_return).all()
    divergence = np.asarray(result.curve.metrics["divergence"])
    assert divergence[-1] > 0


def test_the_robot_of_the_readme_trains_by_name_and_is_filmed_and_exported(tmp_path):
    (example,) = re.findall(r"<!-- robot example -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_robot.py").write_text(example)

    def run(*arguments):
        command = [sys.executable, "-m", "gorl_cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=quick_environment(), capture_output=True, text=True)

    small = [
        "learner.num_envs=16",
        "learner.num_minibatches=2",
        "refinement.batch_size=20",
        "refinement.num_episodes=8",
        "refinement.num_validation_episodes=2",
    ]
    changes = [f"--set={change}" for change in (*small, "refinement.num_epochs=1", "evaluation_episodes=2")]
    trained = run("train", "my_robot:SwingUp", "--seeds", "1", "--steps", "1024", "--out", "run", *changes)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    policy = gorl.load_policy(tmp_path / "run", seed=0)
    assert (policy.observation_size, policy.action_size) == (3, 1)
    exported = run("export", "run", "-o", "policy.stablehlo")
    assert exported.returncode == 0, exported.stdout + exported.stderr
    filmed = run("render", "run", "-o", "film.png", "--steps", "4", "--width", "64", "--height", "48")
    if "libegl1" in filmed.stdout + filmed.stderr:
        pytest.skip("drawing takes EGL or OSMesa")
    assert filmed.returncode == 0, filmed.stdout + filmed.stderr
    assert np.ptp(np.asarray(PIL.Image.open(tmp_path / "film.png"))) > 0


def test_the_export_example_of_the_readme_runs(make_policy, tmp_path):
    (example,) = re.findall(r"<!-- export example -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    policy = make_policy(4, 2)
    for suffix, content in ((".stablehlo", gorl.export_stablehlo(policy)), (".onnx", gorl.export_onnx(policy))):
        (tmp_path / f"policy{suffix}").write_bytes(content)
    check = "import sys\nassert 'gorl' not in sys.modules\nnumpy.savez('actions', action, same_action)"
    subprocess.run([sys.executable, "-c", example + check], cwd=tmp_path, check=True)
    for actions in np.load(tmp_path / "actions.npz").values():
        np.testing.assert_allclose(actions, np.tile(policy.mode(np.zeros(4, np.float32)), (5, 1)), atol=1e-5)


def test_the_returns_of_the_readme_are_those_of_the_raw_files():
    (table,) = re.findall(r"<!-- returns -->\n(.*?)\n\n", README.read_text(), re.DOTALL)
    (_, *tasks), _, *rows = ([entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines())
    shown = {
        (task, name.strip("`")): entry
        for name, *entries in rows
        for task, entry in zip(tasks, entries, strict=True)
        if entry
    }
    files = {tuple(path.stem.split("_")): path for path in (ROOT / "benchmarks/results/returns/laptop").glob("*.csv")}
    assert set(shown) == set(files)
    for cell, path in files.items():
        with path.open() as file:
            last = {row["seed"]: float(row["return_mean"]) for row in csv.DictReader(file)}  # the last row of each seed
        np.testing.assert_allclose(
            float(shown[cell].split()[0]), scipy.stats.trim_mean(list(last.values()), 0.25), atol=0.051, err_msg=cell
        )
