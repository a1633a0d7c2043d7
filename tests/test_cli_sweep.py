"""`gorl sweep`."""

import csv
import errno
import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from killing import SMALL as SLOW, Process, rows
from test_cli import SMALL

import gorl
from gorl_cli._run import Run, only_writer
from gorl_cli._settings import trials
from gorl_cli._train import batch


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
    assert [trial.name for trial in made] == ["clip_epsilon=0.1", "clip_epsilon=0.3"]
    assert [trial.config.learner.discount for trial in made] == [0.9, 0.9]


def test_fields_of_the_same_name_in_two_groups_are_told_apart(small):
    rates = {
        "learner.learning_rate": "1e-3,2e-3",
        "refinement.learning_rate": "1e-4,2e-4",
        "learner.clip_epsilon": "0.1,0.2",
    }
    name = trials(small, rates)[0].name
    assert name == "learner.learning_rate=1e-3, refinement.learning_rate=1e-4, clip_epsilon=0.1"


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
        ({"learner.clp": "0.1"}, "'clip_epsilon'"),
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


RATES = {"1e-3": "0-learning_rate=1e-3", "2e-3": "1-learning_rate=2e-3", "1e30": "2-learning_rate=1e30"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, output_of):
    """A sweep over a number that diverges for one value."""
    directory = tmp_path_factory.mktemp("sweep") / "[v1] out"
    small = [option for option in SMALL if "stage_steps" not in option and "decoder" not in option]
    options = [f"--set=learner.learning_rate={','.join(RATES)}", "--set=learner.entropy_coefficient=0"]
    more = ["--method", "ppo", "--steps", "240", "--seeds", "2", "--log", "tensorboard", "--out", directory]
    output = output_of("sweep", "MultiGoal", *small, *options, *more)
    return directory, table(directory), output


def table(directory):
    with (directory / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_a_directory_of_runs(swept, command):
    directory, _, _ = swept
    names = [*RATES.values(), ".lock", "sweep.csv", "sweep.json", "sweep.png"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)
    for rate, name in RATES.items():
        run = Run.open(directory / name)
        assert run.is_finished
        assert run.config.learner.learning_rate == float(rate)
        assert [row["env_steps"] for row in run.curve()[::2]] == ["0", "80", "160", "240"]
        assert len(list((run.directory / "tensorboard").iterdir())) == 2
        assert len(run.checkpoints()) == 1
    code, output, _ = command("eval", directory / RATES["1e-3"], "--episodes", 2, "--json")
    assert code == 0
    assert list(json.loads(output)["seeds"]) == ["0", "1"]


def test_the_table_has_a_row_for_each_setting_and_seed(swept):
    directory, rows, _ = swept
    assert [(row["learner.learning_rate"], row["seed"], row["run"]) for row in rows] == [
        (rate, seed, name) for rate, name in RATES.items() for seed in ("0", "1")
    ]
    for row in rows:
        summary = Run.open(directory / row["run"]).summary()
        assert float(row["best_policy_return"]) == summary["best_policy_return"][row["seed"]]


def test_a_run_of_a_sweep_trains_like_one_of_its_own(swept):
    directory, _, _ = swept
    for rate in ("1e-3", "2e-3"):
        run = Run.open(directory / RATES[rate])
        *_, (_, state) = gorl.iterate(run.config, run.keys)
        result = gorl.finish(run.config, state)
        for seed in (0, 1):
            curve = [float(row["return_mean"]) for row in run.curve() if row["seed"] == str(seed)]
            np.testing.assert_allclose(curve, result.curve.mean_return[seed], rtol=1e-3)
        best = list(run.summary()["best_policy_return"].values())
        np.testing.assert_allclose(best, np.mean(result.returns, axis=1), rtol=1e-3)


def test_a_setting_that_diverges_is_marked_and_the_others_are_not(swept):
    directory, rows, output = swept
    for row in rows:
        is_lost = row["learner.learning_rate"] == "1e30"
        assert (row["diverged_at"], row["divergence"] != "") == (("80", True) if is_lost else ("", False))
        curve = [row["diverged_at"] for row in Run.open(directory / row["run"]).curve()[::2]]
        assert curve == (["", "80", "80", "80"] if is_lost else [""] * 4)
    assert "2 of 2" in output


def test_the_shown_table_is_sorted_and_says_how_to_train_the_best(swept):
    directory, rows, output = swept
    means = {rate: [float(row["best_policy_return"]) for row in rows if row["run"] == RATES[rate]] for rate in RATES}
    order = sorted(means, key=lambda rate: -np.mean(means[rate]))
    shown = [line.split("│")[1].strip() for line in output.splitlines() if line.startswith("│")]
    assert [cell for cell in shown if cell in means] == order
    assert "gorl train MultiGoal --method ppo" in output
    best = output.partition("the best: ")[2]
    assert f"--set learner.learning_rate={order[0]}" in best
    assert "--set learner.entropy_coefficient=0" in best
    assert "--steps 240" in best
    assert f"sweep.csv, sweep.png and the runs are in {directory}\n" in output


def test_what_decides_a_shape_is_compiled_by_itself(command, tmp_path):
    small = [option for option in SMALL if "stage_steps" not in option and "policy_width" not in option]
    small = [option for option in small if "decoder" not in option]
    out = tmp_path / "out"
    options = ["--set=learner.policy_width=4,8", "--method", "ppo", "--steps", 80, "--seeds", 1, "--out", out]
    code, output, _ = command("sweep", "MultiGoal", *small, *options)
    assert code == 0
    assert output.count("compiling, once") == 2
    assert {row["learner.policy_width"] for row in table(out)} == {"4", "8"}


# --- Stopped, killed and resumed. ---

STAGED = [*SLOW, "--set=learner.num_minibatches=2"]
# Two groups, of which the first has two runs.
GRID = ["--set=learner.clip_epsilon=0.1,0.2", "--set=learner.value_depth=1,2"]
RUNS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def begin(out, *options):
    return ["sweep", "MultiGoal", "--seeds", 1, "--checkpoint-every", 0, "--out", out, *STAGED, *GRID, *options]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    """A sweep that nothing happens to."""
    out = tmp_path_factory.mktemp("unbroken") / "sweep"
    code, _, error = Process(*begin(out), cache=cache).end()
    assert code == 0, error
    return out


def assert_same_sweep(one, other):
    """The same bit for bit, but for the time that it took."""
    assert (one / "sweep.csv").read_bytes() == (other / "sweep.csv").read_bytes()
    assert (one / "sweep.png").read_bytes() == (other / "sweep.png").read_bytes()
    runs = sorted(path.name for path in one.iterdir() if path.is_dir())
    assert len(runs) == RUNS
    for run in runs:
        assert rows(one / run) == rows(other / run)
        assert (one / run / "policies.eqx").read_bytes() == (other / run / "policies.eqx").read_bytes()
        assert {path.name for path in (one / run).iterdir()} - {".lock"} == {
            path.name for path in (other / run).iterdir()
        } - {".lock"}


def test_a_sweep_that_is_stopped_and_killed_ends_bit_for_bit_like_one_that_is_not(unbroken, cache, tmp_path, command):
    out = tmp_path / "sweep"
    process = Process(*begin(out), cache=cache)
    process.wait_for("160 env steps")
    process.send(signal.SIGINT)
    code, _, error = process.end()
    assert code == 130
    assert f"stopped; go on with: gorl resume {out}\n" in error
    first = next(path for path in sorted(out.iterdir()) if path.is_dir())
    assert f"go on with gorl resume {out}" in command("resume", first)[2]
    code, _, error = command("eval", first, "--episodes", 1, "--json")  # a part of it can be looked at
    assert code == 0
    assert "this run is not finished" in error

    process = Process("resume", out, cache=cache, saves=4)  # as it writes the second of two checkpoints
    code, _, error = process.end()
    assert code == -signal.SIGKILL, error

    process = Process("resume", out, cache=cache)
    process.wait_for("compiling")
    process.wait_for("compiling")  # of the second group
    process.wait_for("160 env steps")
    process.send(signal.SIGTERM)
    code, _, error = process.end()
    assert code == 143, error
    code, output, error = Process("resume", out, cache=cache).end()
    assert code == 0, error
    assert output.count("compiling") == 1  # the first group is finished
    assert_same_sweep(out, unbroken)
    assert not any(out.rglob("*.unfinished"))


def test_a_finished_sweep(unbroken, cache, command, tmp_path):
    out = shutil.copytree(unbroken, tmp_path / "sweep")
    code, _, error = command("resume", out)
    assert code == 2
    assert "is finished: give --steps and one of its runs to go on" in error
    assert "give the directory of one of its runs" in command("resume", out, "--steps", 5000)[2]
    assert "is a sweep: give the directory of one of its runs" in command("eval", out)[2]
    # The table and the picture come back if only they are missing.
    (out / "sweep.csv").unlink()
    (out / "sweep.png").unlink()
    code, output, _ = command("resume", out)
    assert code == 0
    assert "the best: " in output
    assert_same_sweep(out, unbroken)


def test_a_run_of_a_finished_sweep_gets_longer_by_itself(unbroken, cache, tmp_path):
    out = shutil.copytree(unbroken, tmp_path / "sweep")
    run = next(path for path in sorted(out.iterdir()) if path.is_dir())
    code, _, error = Process("resume", run, "--steps", 1280, cache=cache).end()
    assert code == 0, error
    assert Run.open(run).is_finished
    assert Run.open(run).env_steps == 1280


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "versions": {"gorl": "0.2.0"}, "runs": []}'])
def test_a_sweep_json_of_something_else(command, tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    code, _, error = command("resume", tmp_path)
    assert code == 2
    assert "sweep.json is not what gorl train wrote" in error
    assert error.count("\n") == 1


# --- Where nothing can be written. ---


@pytest.fixture
def sweep_that_cannot_write(command, tmp_path, monkeypatch):
    """Runs a small sweep in which writing a file does something else, but for those that say what it is."""

    def run(fail, *but):
        write_whole = gorl.internal.write_whole

        def write(path, content):
            return (write_whole if path.name.endswith(but) else fail)(path, content)

        monkeypatch.setattr(gorl.internal, "write_whole", write)
        small = [option for option in SMALL if not any(name in option for name in ("stage_steps", "decoder", "width"))]
        options = ["--set=learner.policy_width=4", "--method", "ppo", "--steps", 80, "--seeds", 1]
        return command("sweep", "MultiGoal", *small, *options, "--out", tmp_path / "out")

    return run


def full(path, content):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_sweep_on_a_full_disk_can_be_resumed(sweep_that_cannot_write, command, tmp_path, monkeypatch):
    code, _, error = sweep_that_cannot_write(full, "config.json", "run.json", "sweep.json")
    assert code == 1
    assert "no curve.csv could be written (No space left on device): the run goes on, and tries again later" in error
    out = tmp_path / "out"
    assert f"could not be written to {out} (No space left on device): make room, and gorl resume {out}" in error
    monkeypatch.undo()
    code, output, _ = command("resume", out)
    assert code == 0
    assert "the best: gorl train MultiGoal" in output


@pytest.mark.parametrize("last", ["run.json", "sweep.json"])
def test_a_sweep_that_cannot_begin_leaves_nothing(sweep_that_cannot_write, tmp_path, last):
    names = ["config.json", "run.json", "sweep.json"]
    code, _, error = sweep_that_cannot_write(full, *names[: names.index(last)])
    assert code == 2
    assert "cannot be written (No space left on device): make room, or give another directory" in error
    assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_sweep_whose_directory_is_moved_stops(sweep_that_cannot_write, tmp_path):
    def fail(path, content):
        path.parent.parent.rename(tmp_path / "moved")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    code, _, error = sweep_that_cannot_write(fail, ".json")
    assert code == 1
    assert error.startswith(f"gorl: {tmp_path / 'out'} has been moved, deleted or replaced, so the run stops.")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


# --- Bad input. ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["PointMas"], "'PointMass'"),
        (["MultiGoal", "--set", "learner.clp=1"], "'clip_epsilon'"),
        (["MultiGoal", "--set", "learner.clip_epsilon"], "FIELD=VALUE"),
        (["MultiGoal", "--set", "learner.clip_epsilon=0.1", "--set", "learner.clip_epsilon=0.2"], "is there twice"),
        (["MultiGoal", "--seeds", "0"], "--seeds must be at least 1"),
        (["MultiGoal", "--set", "stage_steps=80"], "shorter than one iteration"),
        (
            ["MultiGoal", "--method", "sac", "--set", "learner.tau=0.1,0.2", "--seeds", "500000"],
            "the state of 1,000,000 seeds takes",
        ),
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
    with only_writer(out):
        code, _, error = command("sweep", "MultiGoal", *SMALL, "--seeds", 1, "--out", out)
    assert code == 2
    assert f"another process writes to {out}" in error
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_what_is_set_goes_before_what_follows_from_the_steps(small):
    made = trials(small, {"evaluation_interval": "320,640", "learner.clip_epsilon": "0.1"}, steps="8e4")
    assert [trial.config.evaluation_interval for trial in made] == [320, 640]
    assert [trial.config.stage_steps for trial in made] == [(80_000,)] * 2
