"""`gorl resume`: runs that were stopped, killed or damaged."""

import contextlib
import csv
import functools
import json
import random
import shutil
import signal
import subprocess

import numpy as np
import pytest
from killing import METHODS, SMALL, Process, check_files, kill, rows

import gorl
import gorl_cli._train
from gorl_cli._run import Run, restore
from gorl_cli._train import OneRun


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """The arguments that begin a run."""

    def arguments(method, seeds, run, *more, task="MultiGoal"):
        options = ["--method", method, "--seeds", seeds, "--out", run, "--checkpoint-every", 0]
        return ["train", task, *options, *SMALL, *METHODS[method], *more]

    return arguments


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, begin, cache):
    """The directory of a run that nothing happens to, by method, number of seeds and task."""

    @functools.cache
    def make(method, seeds, task="MultiGoal"):
        run = tmp_path_factory.mktemp("unbroken") / "run"
        code, _, error = Process(*begin(method, seeds, run, task=task), cache=cache).end()
        assert code == 0, error
        return run

    return make


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, begin, cache):
    """A run that was stopped in the middle of its first stage."""
    run = tmp_path_factory.mktemp("stopped") / "my run [1]"
    process = Process(*begin("gorl-flow", 1, run), cache=cache)
    process.wait_for("160 env steps")
    process.send(signal.SIGINT)
    return run, *process.end()


@pytest.fixture
def copied(stopped, tmp_path):
    """A copy of the run that was stopped."""
    return shutil.copytree(stopped[0], tmp_path / "run")


def assert_same_files(one, other):
    """The curve and the best policies are the same bit for bit, but for the time that they took."""
    assert rows(one) == rows(other)
    assert (one / "policies.eqx").read_bytes() == (other / "policies.eqx").read_bytes()
    kept = [json.loads((run / "summary.json").read_text())["best_policy_return"] for run in (one, other)]
    assert kept[0] == kept[1]


def restored(directory):
    run = Run.open(directory)
    return restore([run], [run.config])


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def resumed(run, cache):
    code, output, error = Process("resume", run, cache=cache).end()
    assert code == 0, error
    return output, error


# --- Killed. ---


@pytest.mark.parametrize(
    ("task", "method", "seeds", "moments"),
    [
        ("CartpoleSwingup", "gorl-flow", 4, ["compiling", "saving"]),
        ("MultiGoal", "gorl-sac", 4, ["phase", "refinement"]),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_like_one_that_is_not(
    begin, unbroken, cache, tmp_path, task, method, seeds, moments
):
    killed, draw = tmp_path / "killed", random.Random(seeds)
    command = begin(method, seeds, killed, task=task)
    for moment in moments:
        kill(moment, command, killed, cache, draw)
        command = ["resume", killed]
    resumed(killed, cache)
    assert_same_files(killed, unbroken(method, seeds, task))
    assert not any(killed.rglob("*.unfinished"))


# --- Stopped. ---


def test_a_run_that_is_stopped_saves_says_how_to_go_on_and_ends_like_one_that_was_not(stopped, copied, unbroken, cache):
    run, code, _, error = stopped
    assert code == 130
    assert f"go on with: gorl resume '{run}'\n" in error
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    # Nothing is lost: the newest one has every evaluation that is in the curve.
    state, _ = restored(run)
    assert np.isfinite(state.returns).all(axis=-1).sum() == len(rows(run))
    assert int(state.index[0]) == int(checkpoints[-1].partition(".")[0])
    resumed(copied, cache)
    assert_same_files(copied, unbroken("gorl-flow", 1))
    assert {path.name for path in copied.iterdir()} == {path.name for path in unbroken("gorl-flow", 1).iterdir()}
    with (copied / "curve.csv").open() as file:
        seconds = [float(row["wall_seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)  # the clock goes on from where it stopped


def test_sigterm_stops_it_too(begin, cache, tmp_path):
    run = tmp_path / "run"
    process = Process(*begin("gorl-flow", 1, run, "--checkpoint-every", "inf"), cache=cache)
    process.wait_for("80 env steps")
    process.send(signal.SIGTERM)
    code, _, error = process.end()
    assert code == 143
    assert f"go on with: gorl resume {run}" in error
    assert len(list((run / "checkpoints").iterdir())) == 1


def test_before_anything_is_learned_it_stops_at_once_and_quietly(begin, tmp_path):
    run = tmp_path / "run"
    process = Process(*begin("gorl-flow", 1, run), cache=tmp_path / "cache")  # which is empty: it has to compile
    process.wait_for("compiling")
    process.send(signal.SIGINT)
    code, _, error = process.end()
    assert code == 130
    assert error == ""
    assert not (run / "checkpoints").exists()


def test_an_unfinished_run_can_be_looked_at(copied, command):
    code, output, error = command("eval", copied, "--episodes", 3, "--json")
    assert code == 0
    assert "this run is not finished" in error
    assert len(json.loads(output)["seeds"]["0"]["returns"]) == 3


# --- Damaged. ---


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_where_the_newest_checkpoint_is_damaged_the_one_before_is_taken(copied, capsys, damage):
    older, newest = sorted((copied / "checkpoints").iterdir())
    damage(newest)
    before = contents(copied)
    state, _ = restored(copied)
    assert int(state.index[0]) == int(older.stem)
    assert capsys.readouterr().err == f"gorl: the checkpoint {newest} is damaged, so the one before it is used\n"
    assert contents(copied) == before


def test_a_run_whose_newest_checkpoint_is_damaged_ends_like_one_that_was_never_stopped(copied, unbroken, cache):
    *_, newest = sorted((copied / "checkpoints").iterdir())
    flip(newest)
    assert f"the checkpoint {newest} is damaged" in resumed(copied, cache)[1]
    assert_same_files(copied, unbroken("gorl-flow", 1))


def test_where_no_checkpoint_is_left_nothing_is_touched(copied, command):
    for path in (copied / "checkpoints").iterdir():
        flip(path)
    before = contents(copied)
    code, _, error = command("resume", copied)
    assert code == 2
    assert error.splitlines()[-1].startswith("gorl: no checkpoint in")
    assert contents(copied) == before


# --- Longer. ---


@pytest.fixture(scope="module")
def longer(tmp_path_factory, begin, cache):
    """The directory of a run that began with two stages more, and to which nothing happens."""
    run = tmp_path_factory.mktemp("longer") / "run"
    arguments = [str(argument).replace("640,320", "640,320,320,320") for argument in begin("gorl-flow", 1, run)]
    code, _, error = Process(*arguments, cache=cache).end()
    assert code == 0, error
    return run


def test_a_finished_run_that_gets_longer_is_whole_at_every_moment_and_ends_like_one_that_began_longer(
    unbroken, longer, cache, tmp_path, command
):
    run = shutil.copytree(unbroken("gorl-flow", 1), tmp_path / "run")
    before = contents(run)
    (checkpoint,) = (run / "checkpoints").iterdir()
    kill("saving", ["resume", run, "--steps", "1600"], run, cache, random.Random(0))
    assert not Run.open(run).is_finished
    assert rows(run)[: len(rows(unbroken("gorl-flow", 1)))] == rows(unbroken("gorl-flow", 1))
    for name in ("policies.eqx", "summary.json"):
        assert (run / name).read_bytes() == before[run / name]
    code, _, error = command("eval", run, "--episodes", 3, "--json")
    assert code == 0
    assert "the best policies of the shorter run that it continues" in error
    resumed(run, cache)
    assert_same_files(run, longer)
    assert {path.name for path in run.iterdir()} == {path.name for path in longer.iterdir()}
    (last,) = (run / "checkpoints").iterdir()
    assert last.stem > checkpoint.stem
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 1600


def test_an_unfinished_run_gets_longer_too(copied, longer, cache):
    code, _, error = Process("resume", copied, "--steps", "1.6e3", cache=cache).end()
    assert code == 0, error
    assert_same_files(copied, longer)


def test_a_run_that_is_killed_as_it_gets_longer_is_the_one_or_the_other(copied, command, monkeypatch):
    """Its config says which, and each of its checkpoints goes with either."""
    longer = gorl.lengthen(Run.open(copied).config, 1_600)
    monkeypatch.setattr(gorl_cli._train, "train_groups", lambda *_: 0)
    assert command("resume", copied, "--steps", 1600)[0] == 0
    assert Run.open(copied).config == longer
    for _ in range(2):
        state, _ = restored(copied)
        assert state.returns.shape[1] == gorl.make_schedule(longer).num_evaluations
        sorted((copied / "checkpoints").iterdir())[-1].unlink()


@pytest.mark.parametrize(("steps", "words"), [("960", "give at least 1,040"), ("many", "whole number")])
def test_a_run_does_not_get_shorter(unbroken, refused, steps, words):
    run = unbroken("gorl-flow", 1)
    assert words in refused(run, "resume", run, "--steps", steps)


def test_a_finished_run_without_its_checkpoint_cannot_get_longer(unbroken, refused, tmp_path):
    run = shutil.copytree(unbroken("gorl-flow", 1), tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint any more" in refused(run, "resume", run, "--steps", "2000")


# --- Moved. ---


def test_a_run_whose_directory_is_moved_stops_at_its_next_write_and_goes_on_where_it_is(
    begin, unbroken, cache, tmp_path
):
    run, moved = tmp_path / "run", tmp_path / "moved"
    process = Process(*begin("gorl-flow", 1, run), cache=cache)
    process.wait_for("160 env steps")
    run.rename(moved)
    code, output, error = process.end()
    assert code == 1
    assert error.splitlines()[-1].startswith(f"gorl: {run} has been moved, deleted or replaced, so the run stops.")
    assert "make room" not in error
    assert "stage 1" not in output  # it was noticed long before the end
    assert not run.exists()
    resumed(moved, cache)
    assert_same_files(moved, unbroken("gorl-flow", 1))


def test_versions_that_differ_are_named(copied, command, monkeypatch):
    now = gorl_cli._train.versions()
    monkeypatch.setattr(gorl_cli._train, "versions", lambda: now | {"jaxlib": "0.99"})
    monkeypatch.setattr(gorl_cli._train, "train_groups", lambda *_: 0)
    code, _, error = command("resume", copied)
    assert code == 0
    assert f"not be the same bit for bit as if it had not been stopped: jaxlib was {now['jaxlib']} and is 0.99" in error


# --- A full disk. ---


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own with a megabyte on it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(path):
    """Leaves no room on a disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_loses_nothing(begin, unbroken, cache, small_disk):
    run = small_disk / "run"
    process = Process(*begin("gorl-flow", 1, run), cache=cache)
    process.wait_for("160 env steps")
    fill(small_disk / "ballast")
    code, _, error = process.end()
    assert code == 1
    assert "no checkpoint could be written (No space left on device): the run goes on" in error
    assert f"could not be written to {run} (No space left on device): make room, and gorl resume {run}" in error
    assert not (run / "summary.json").exists()
    check_files(run)
    assert len(list((run / "checkpoints").glob("[0-9]*"))) == 2
    assert not list(run.rglob("*.unfinished"))
    (small_disk / "ballast").unlink()
    resumed(run, cache)
    assert_same_files(run, unbroken("gorl-flow", 1))


def test_a_disk_that_is_full_from_the_beginning(small_disk, command):
    fill(small_disk / "ballast")
    code, output, error = command("train", "MultiGoal", "--out", small_disk / "run", *SMALL)
    assert code == 2
    assert output == ""
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert not (small_disk / "run" / "config.json").exists()


# --- Bad input: one sentence, and nothing changes. ---


@pytest.fixture
def refused(command):
    """Runs a command that must be refused; returns the sentence."""

    def run(directory, *arguments):
        before = contents(directory)
        code, output, error = command(*arguments)
        assert code == 2
        assert output == ""
        assert error.startswith("gorl: ")
        assert error.count("\n") == 1
        assert contents(directory) == before
        return error

    return run


COMMANDS = {
    "resume": ["resume"],
    "eval": ["eval"],
    "render": ["render", "-o", "film.gif"],
    "plot": ["plot"],
    "actions": ["plot", "--actions"],
    "export": ["export", "-o", "policy.stablehlo"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_what_is_no_run(refused, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert "is no directory" in refused(tmp_path, *arguments, "nowhere")
    assert "is no directory" in refused(tmp_path, *arguments, "file")
    assert "it has no run.json" in refused(tmp_path, *arguments, "empty")


def edit(run, name, **changes):
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | changes))


def test_a_run_that_another_process_writes(copied, refused):
    with OneRun.of(Run.open(copied)).writing():
        assert "another process writes to" in refused(copied, "resume", copied)


def test_a_run_of_a_newer_format(copied, refused):
    edit(copied, "run.json", format=99)
    assert "install a newer gorl" in refused(copied, "resume", copied)


def test_a_run_of_an_older_format(copied, refused):
    edit(copied, "run.json", format=1, versions={"gorl": "0.1.0"})
    assert "was written by gorl 0.1.0, whose names this version does not know any more" in refused(
        copied, "resume", copied
    )


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_run_that_lacks_a_file(copied, refused, name):
    (copied / name).unlink()
    assert f"it has no {name}" in refused(copied, "resume", copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "one"}'])
def test_a_run_json_of_something_else(copied, refused, text):
    (copied / "run.json").write_text(text)
    assert "not what gorl train wrote" in refused(copied, "resume", copied)


def test_a_config_that_cannot_be_understood(copied, refused):
    edit(copied, "config.json", evaluation_episode=3)
    assert "'evaluation_episodes'" in refused(copied, "resume", copied)


def test_a_config_that_has_changed(copied, refused):
    learner = json.loads((copied / "config.json").read_text())["learner"]
    edit(copied, "config.json", evaluation_episodes=5, learner=learner | {"clip_epsilon": 0.5})
    sentence = refused(copied, "resume", copied)
    assert f"learner.clip_epsilon was {learner['clip_epsilon']} and is 0.5" in sentence
    assert "evaluation_episodes was 4 and is 5" in sentence
    assert "learner.num_envs" not in sentence


def test_a_run_that_is_finished(unbroken, refused):
    run = unbroken("gorl-flow", 1)
    assert "is finished: give --steps, and more of them than its 960" in refused(run, "resume", run)


def test_a_directory_with_a_run_in_it_is_not_trained_into(copied, refused):
    assert f"gorl resume {copied}" in refused(copied, "train", "MultiGoal", "--out", copied)
