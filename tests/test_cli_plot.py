"""`gorl plot`: what it reads and writes; what the pictures hold is tested in `test_cli_figures.py`."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

import gorl
from gorl_cli._plot import run_curve, run_labels
from gorl_cli._run import Run

BEGINNINGS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.fixture
def copied(finished_run, tmp_path):
    return shutil.copytree(finished_run.directory, tmp_path / "run")


@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_the_curves_of_runs_become_a_picture(command, finished_run, tmp_path, suffix):
    out = tmp_path / f"curves{suffix}"
    code, output, _ = command("plot", finished_run.directory, finished_run.directory, "-o", out)
    assert code == 0
    assert output == f"{out}\n"
    assert out.read_bytes().startswith(BEGINNINGS[suffix])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_actions_of_a_policy_become_a_picture(command, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = command("plot", "--actions", finished_run.directory)
    assert code == 0
    assert "the policy of seed 6, the best of 3" in error
    assert (tmp_path / "actions.png").read_bytes().startswith(BEGINNINGS[".png"])


def test_a_curve_is_what_the_file_says(finished_run):
    curve = run_curve(finished_run, "a label")
    assert curve.label == "a label"
    np.testing.assert_array_equal(curve.env_steps, [0, 800, 800, 1600])
    np.testing.assert_array_equal(curve.stage, [0, 0, 1, 1])
    np.testing.assert_array_equal(curve.returns, np.outer([5, 6, 7], [0, 800, 800, 1600]))


def test_a_seed_that_diverged_has_no_return(copied):
    run = Run.open(copied)
    run.curve_file.write_text(run.curve_file.read_text().replace(",11200", ",nan"))
    assert np.isnan(run_curve(run, "").returns).tolist() == [[False] * 4, [False] * 4, [False, False, False, True]]


def test_another_column_of_the_curve(command, copied, tmp_path):
    run = Run.open(copied)
    head, *rows = run.curve_file.read_text().splitlines()
    values = ["nan", 1, 2, 3]  # nothing was learned before the first evaluation
    rows = [f"{row},{values[index // 3]}" for index, row in enumerate(rows)]
    run.curve_file.write_text("\n".join([f"{head},value_loss", *rows]))
    curve = run_curve(run, "", "value_loss")
    np.testing.assert_array_equal(curve.env_steps, [800, 800, 1600])
    np.testing.assert_array_equal(curve.returns, [[1, 2, 3]] * 3)
    assert curve.num_diverged == 0
    code, _, _ = command("plot", copied, "-o", tmp_path / "curves.svg", "--column", "value_loss")
    assert code == 0
    assert "value_loss" in (tmp_path / "curves.svg").read_text()


def test_runs_are_told_apart(finished_run, tmp_path):
    def run(**changes):
        return dataclasses.replace(finished_run, **changes)

    ppo = run(method="ppo")
    elsewhere = run(config=gorl.replace(finished_run.config, {"env": gorl.EnvConfig("PointMass")}))
    other = run(directory=tmp_path / "other")
    assert run_labels([finished_run, ppo]) == ["gorl-flow", "ppo"]
    assert run_labels([finished_run, elsewhere]) == ["gorl-flow on MultiGoal", "gorl-flow on PointMass"]
    assert run_labels([finished_run, other, ppo]) == ["gorl-flow (run)", "gorl-flow (other)", "ppo"]


def test_runs_in_directories_of_the_same_name_are_told_apart(finished_run):
    def labels(*directories):
        return run_labels([dataclasses.replace(finished_run, directory=pathlib.Path(path)) for path in directories])

    assert labels("/a/run", "/b/run") == ["gorl-flow (a/run)", "gorl-flow (b/run)"]
    assert labels("/a/one/run", "/b/one/run", "/b/other") == [
        "gorl-flow (a/one/run)",
        "gorl-flow (b/one/run)",
        "gorl-flow (other)",
    ]
    assert labels("/run", "/a/run") == ["gorl-flow (/run)", "gorl-flow (a/run)"]
    assert labels("/a/run", "/a/run", "/b/it") == ["gorl-flow (run)", "gorl-flow (run)", "gorl-flow (it)"]


def test_a_run_that_is_not_finished_is_drawn_as_far_as_it_has_come(command, copied, tmp_path):
    (copied / "summary.json").unlink()
    code, _, error = command("plot", copied, "-o", tmp_path / "curves.png")
    assert code == 0
    assert "is not finished" in error


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-o", "curves.jpg"], "must end in one of .png, .pdf, .svg"),
        (["-o", "curves"], "must end in one of"),
        (["-o", "nowhere/curves.png"], "cannot be written"),
        (["--actions", "--seed", 4], "no seed 4"),
        (["--column", "retrun_mean"], "is called 'retrun_mean': did you mean 'return_mean'"),
    ],
)
def test_bad_input_is_one_sentence(command, finished_run, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    code, output, error = command("plot", finished_run.directory, *options)
    assert code == 2
    assert output == ""
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_actions_are_of_one_run(command, finished_run):
    code, _, error = command("plot", "--actions", finished_run.directory, finished_run.directory)
    assert code == 2
    assert "give one run" in error


def test_a_run_without_a_curve(command, copied, tmp_path):
    (copied / "curve.csv").unlink()
    code, _, error = command("plot", copied, "-o", tmp_path / "curves.png")
    assert code == 2
    assert "nothing was evaluated" in error


@pytest.mark.parametrize("text", ["", "seed,stage\n5,0\n", "seed,stage,env_steps,return_mean\n5,0,0,much\n"])
def test_a_curve_of_something_else(command, copied, tmp_path, text):
    (copied / "curve.csv").write_text(text)
    code, _, error = command("plot", copied, "-o", tmp_path / "curves.png")
    assert code == 2
    assert "copy it again" in error
    assert not (tmp_path / "curves.png").exists()
