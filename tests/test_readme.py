"""What the README and the guides show has to work, and their figures have to be those of the raw files."""

import pathlib
import re
import subprocess
import sys

import figures
import numpy as np
import PIL.Image
import pytest
from quick import quick_environment

import gorl

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
SPEED = ROOT / "gorl/guides/speed.md"


def test_the_robot_of_the_guide_trains_by_name_and_is_filmed_and_exported(tmp_path):
    guide = (ROOT / "gorl/guides/environments.md").read_text()
    (example,) = re.findall(r"<!-- file: my_robot.py -->\n```python\n(.*?)```", guide, re.DOTALL)
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


def test_the_export_example_of_the_guide_runs(make_policy, tmp_path):
    guide = (ROOT / "gorl/guides/runs.md").read_text()
    (example,) = re.findall(r"<!-- export example -->\n```python\n(.*?)```", guide, re.DOTALL)
    policy = make_policy(4, 2)
    for suffix, content in ((".stablehlo", gorl.export_stablehlo(policy)), (".onnx", gorl.export_onnx(policy))):
        (tmp_path / f"policy{suffix}").write_bytes(content)
    check = "import sys\nassert 'gorl' not in sys.modules\nnumpy.savez('actions', action, same_action)"
    subprocess.run([sys.executable, "-c", example + check], cwd=tmp_path, check=True)
    for actions in np.load(tmp_path / "actions.npz").values():
        np.testing.assert_allclose(actions, np.tile(policy.mode(np.zeros(4, np.float32)), (5, 1)), atol=1e-5)


def table(path, name):
    """The lines of the table that a document marks with a name."""
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)\n\n", path.read_text(), re.DOTALL)
    return found.splitlines()


def test_the_returns_of_the_readme_are_those_of_the_raw_files():
    assert table(README, "returns") == figures.returns_table()
    files = [path.stem for path in (ROOT / "benchmarks/results/returns/laptop").glob("*.csv")]
    assert {file.split("_")[1] for file in files} <= set(figures.METHODS)
    assert {file.split("_")[0] for file in files} <= set(figures.TASKS)


def test_the_speed_of_the_guide_is_that_of_the_raw_files():
    assert table(SPEED, "speed") == figures.speed_table()
    assert table(SPEED, "solvers") == figures.solver_table()
    assert table(SPEED, "gpu") == figures.gpu_table()
    for line in figures.speed_table()[2:] + figures.gpu_table()[2:]:
        assert (figures.RESULTS / line.split("`")[-2]).is_file()


def test_the_speed_of_the_readme_is_part_of_that_of_the_guide():
    heading, ruler, *rows = table(README, "speed")
    assert [heading, ruler] == figures.speed_table()[:2]
    assert set(rows) <= set(figures.speed_table())


def test_the_figures_in_sentences_are_in_the_tables():
    """Figures with two decimals, as those of a ratio are."""
    known = " ".join([*figures.speed_table(), *figures.gpu_table(), *figures.solver_table()])
    for path in (README, SPEED):
        prose = re.sub(r"^\|.*$", "", path.read_text(), flags=re.MULTILINE)
        for figure in re.findall(r"(?<![\d.])\d\.\d\d(?![\d.])", prose):
            if figure not in ("3.11", "3.12", "3.13"):  # versions of Python
                assert figure in known, f"{figure} in {path.name}"


def test_the_machine_and_the_versions_are_those_of_the_raw_files():
    paths = [line.split("`")[-2] for line in figures.speed_table()[2:]]
    measured = [content for path in paths if "machine" in (content := figures.raw(path))]
    assert len(measured) > 10
    for content in measured:
        assert content["machine"].startswith("Linux")
        assert "x86_64" in content["machine"]
        assert (content["cores"], content["device"]) == (2, "cpu")
        for package in ("gorl", "jax", "equinox", "diffrax", "mujoco-mjx", "brax"):
            for document in (README, SPEED):
                assert f"{package} {content[package]}" in " ".join(document.read_text().split()), package


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200
