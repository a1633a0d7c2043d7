"""`gorl sweep`."""

import csv
import errno
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import SMALL

import gorl
from gorl_cli._directory import only_writer
from gorl_cli._sweep import batch, trials


@pytest.fixture(scope="module")
def small(tiny):
    return gorl.replace(tiny, {"stage_steps": (160,), "decoder": gorl.Identity()})


# --- Which settings there are. ---


def test_every_combination_is_tried(small):
    made = trials(small, {"learner.clip_epsilon": "0.1,0.2", "learner.learning_rate": "1e-3, 2e-3,3e-3"})
    assert len(made) == 6
    for trial in made:
        assert trial.config.learner.clip_epsilon == float(trial.values["learner.clip_epsilon"])
        assert trial.config.learner.learning_rate == float(trial.values["learner.learning_rate"])
    assert len({trial.name for trial in made}) == 6


def test_what_is_set_in_all_of_them_tells_none_from_another(small):
    made = trials(small, {"learner.clip_epsilon": "0.1,0.3", "learner.discount": "0.9"})
    assert [trial.name for trial in made] == ["clip=0.1", "clip=0.3"]
    assert [trial.config.learner.discount for trial in made] == [0.9, 0.9]


def test_fields_of_the_same_name_in_two_groups_are_told_apart(small):
    rates = {
        "learner.learning_rate": "1e-3,2e-3",
        "refinement.learning_rate": "1e-4,2e-4",
        "learner.clip_epsilon": "0.1,0.2",
    }
    name = trials(small, rates)[0].name
    assert name == "learner.learning_rate=1e-3, refinement.learning_rate=1e-4, clip=0.1"


def test_values_can_be_whole_numbers_names_tuples_and_one_alone(small):
    made = trials(
        small,
        {
            "learner.policy_width": "8,16",
            "stage_steps": "160;320",
            "learner.keep_value": "true,false",
            "env.name": "MultiGoal",
        },
    )
    assert len(made) == 8
    assert {trial.config.stage_steps for trial in made} == {(160,), (320,)}
    assert {trial.config.learner.keep_value for trial in made} == {True, False}
    staged = gorl.replace(small, {"stage_steps": (160, 160), "decoder": gorl.FlowMatching()})
    assert [trial.config.stage_steps for trial in trials(staged, {"stage_steps": "160,320"})] == [(160, 320)]


def test_a_value_twice_is_tried_once(small):
    assert len(trials(small, {"learner.clip_epsilon": "0.1,0.1"})) == 1


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"learner.clp": "0.1"}, "'clip'"),
        ({"learner.clip_epsilon": "0.1,high"}, "learner.clip_epsilon must be a number above 0, not 'high'"),
        ({"learner.clip_epsilon": "0.1,-1"}, "learner.clip_epsilon must be a number above 0"),
        ({"learner.clip_epsilon": ","}, "learner.clip_epsilon"),
        ({"learner.num_minibatches": "2,7"}, "does not divide"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(small, grid, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        trials(small, grid)


def test_a_batch_has_the_values_of_each_trial_as_often_as_there_are_seeds(small):
    made = trials(small, {"learner.clip_epsilon": "0.1,0.2", "learner.discount": "0.9"})
    joined = batch([trial.config for trial in made], 3)
    np.testing.assert_allclose(joined.learner.clip_epsilon, [0.1, 0.1, 0.1, 0.2, 0.2, 0.2])
    assert joined.learner.discount == 0.9
    assert jnp.ndim(joined.learner.learning_rate) == 0


# --- A whole sweep. ---


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep over a number that diverges for one value, and over a width that takes a compilation of its own."""
    import contextlib
    import io
    import sys

    from gorl_cli._app import main

    directory = tmp_path_factory.mktemp("sweep") / "[v1] out"
    small = [option for option in SMALL if "stage_steps" not in option and "decoder" not in option]
    options = ["--set=learner.learning_rate=1e-3,2e-3,1e30", "--set=learner.entropy_coefficient=0", "--method", "ppo"]
    arguments = ["sweep", "MultiGoal", *small, *options, "--steps", "240", "--seeds", "2", "--out", str(directory)]
    output, before = io.StringIO(), sys.argv
    sys.argv = ["gorl", *arguments]
    try:
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    assert not stop.value.code
    with (directory / "sweep.csv").open() as file:
        return directory, list(csv.DictReader(file)), output.getvalue()


def test_one_table_has_every_evaluation_of_every_setting_and_seed(swept):
    directory, rows, _ = swept
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "sweep.csv", "sweep.json", "sweep.png"]
    assert list(rows[0])[-1] == "is_kept"
    for rate in ("1e-3", "2e-3", "1e30"):
        for seed in ("0", "1"):
            here = [row for row in rows if (row["learner.learning_rate"], row["seed"]) == (rate, seed)]
            assert [row["env_steps"] for row in here] == ["0", "80", "160", "240", "240"]
            assert [row["is_kept"] for row in here] == ["0", "0", "0", "0", "1"]
    assert json.loads((directory / "sweep.json").read_text())["set"]["learner.learning_rate"] == "1e-3,2e-3,1e30"


def test_a_setting_of_a_sweep_trains_like_a_run_of_its_own(swept):
    directory, rows, _ = swept
    config = gorl.Config.from_json(json.dumps(json.loads((directory / "sweep.json").read_text())["config"]))
    keys = jax.vmap(jax.random.key)(np.arange(2, dtype=np.uint32))
    for rate in ("1e-3", "2e-3"):
        *_, (_, state) = gorl.iterate(gorl.replace(config, {"learner.learning_rate": float(rate)}), keys)
        result = gorl.finish(gorl.replace(config, {"learner.learning_rate": float(rate)}), state)
        for seed in (0, 1):
            here = [row for row in rows if (row["learner.learning_rate"], row["seed"]) == (rate, str(seed))]
            curve, kept = [float(row["return_mean"]) for row in here[:-1]], float(here[-1]["return_mean"])
            np.testing.assert_allclose(curve, result.curve.mean_return[seed], rtol=1e-3)
            np.testing.assert_allclose(kept, np.mean(result.returns[seed]), rtol=1e-3)


def test_a_setting_that_diverges_is_marked_and_the_others_are_not(swept):
    _, rows, output = swept
    for row in rows:
        if row["learner.learning_rate"] == "1e30":
            assert row["diverged_at"] == ("" if row["env_steps"] == "0" else "80")
        else:
            assert row["diverged_at"] == ""
            assert math.isfinite(float(row["return_mean"]))
    assert "2 of 2" in output


def test_the_table_is_sorted_and_says_how_to_train_the_best(swept):
    directory, rows, output = swept
    means = {}
    for row in rows:
        if row["is_kept"] == "1":
            means.setdefault(row["learner.learning_rate"], []).append(float(row["return_mean"]))
    order = sorted(means, key=lambda rate: -np.mean(means[rate]))
    shown = [line.split("│")[1].strip() for line in output.splitlines() if line.startswith("│")]
    assert [cell for cell in shown if cell in means] == order
    assert "gorl train MultiGoal --method ppo" in output
    best = output.partition("the best: ")[2]
    assert f"--set learner.learning_rate={order[0]}" in best
    assert "--steps 240" in best
    assert f"sweep.csv and sweep.png are in {directory}\n" in output


def test_what_decides_a_shape_is_compiled_by_itself(command, tmp_path):
    small = [option for option in SMALL if "stage_steps" not in option and "policy_width" not in option]
    small = [option for option in small if "decoder" not in option]
    out = tmp_path / "out"
    options = ["--set=learner.policy_width=4,8", "--method", "ppo", "--steps", 80, "--seeds", 1, "--out", out]
    code, output, _ = command("sweep", "MultiGoal", *small, *options)
    assert code == 0
    assert output.count("compiling, once") == 2
    with (out / "sweep.csv").open() as file:
        assert {row["learner.policy_width"] for row in csv.DictReader(file)} == {"4", "8"}


@pytest.fixture
def sweep_that_cannot_write(command, tmp_path, monkeypatch):
    """Runs a small sweep in which writing a table or a picture does something else."""

    def run(fail):
        write_whole = gorl.internal.write_whole
        monkeypatch.setattr(gorl, "write_whole", lambda *file: (write_whole if "json" in file[0].name else fail)(*file))
        small = [option for option in SMALL if not any(name in option for name in ("stage_steps", "decoder", "width"))]
        options = ["--set=learner.policy_width=4", "--method", "ppo", "--steps", 80, "--seeds", 1]
        return command("sweep", "MultiGoal", *small, *options, "--out", tmp_path / "out")

    return run


def test_a_sweep_on_a_full_disk_shows_what_it_found(sweep_that_cannot_write):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    code, output, error = sweep_that_cannot_write(fail)
    assert code == 1
    assert "no sweep.csv could be written (No space left on device): the sweep goes on, and tries again" in error
    assert "no sweep.png could be written (No space left on device): the sweep is over" in error
    assert "the best: gorl train MultiGoal" in output


def test_a_sweep_whose_directory_is_moved_stops(sweep_that_cannot_write, tmp_path):
    def fail(path, content):
        path.parent.rename(tmp_path / "moved")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    code, _, error = sweep_that_cannot_write(fail)
    assert code == 1
    assert error.startswith(f"gorl: {tmp_path / 'out'} has been moved, deleted or replaced, so the sweep stops.")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["PointMas"], "'PointMass'"),
        (["MultiGoal", "--set", "learner.clp=1"], "'clip'"),
        (["MultiGoal", "--set", "learner.clip_epsilon"], "FIELD=VALUE"),
        (["MultiGoal", "--set", "learner.clip_epsilon=0.1", "--set", "learner.clip_epsilon=0.2"], "is there twice"),
        (["MultiGoal", "--seeds", "0"], "--seeds must be at least 1"),
        (["MultiGoal", "--set", "stage_steps=80"], "shorter than one iteration"),
        (
            ["MultiGoal", "--set", "stage_steps=80000;90000", "--steps", "1e5"],
            "--set stage_steps says what --steps would",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(command, tmp_path, arguments, sentence):
    code, output, error = command("sweep", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert output == ""
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_left_as_it_is(command, tmp_path):
    (tmp_path / "sweep.csv").write_text("precious")
    assert "already in use" in command("sweep", "MultiGoal", "--out", tmp_path)[2]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_two_sweeps_do_not_write_to_one_directory(command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with only_writer(out, "it"):
        code, _, error = command("sweep", "MultiGoal", *SMALL, "--seeds", 1, "--out", out)
    assert code == 2
    assert f"--out {out} is being written by another process" in error
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_what_is_set_goes_before_what_follows_from_the_steps(small):
    def change(config, values):
        return gorl.reschedule(config, total_steps=80_000, changes=values)

    made = trials(small, {"evaluation_interval": "320,640", "learner.clip_epsilon": "0.1"}, change)
    assert [trial.config.evaluation_interval for trial in made] == [320, 640]
    assert [trial.config.stage_steps for trial in made] == [(80_000,)] * 2
