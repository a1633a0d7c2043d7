"""The loggers of `gorl train --log`."""

import contextlib
import dataclasses
import importlib.util
import json
import resource
import subprocess
import sys
import threading
import uuid

import numpy as np
import pytest
import wandb
from quick import quick_environment
from tensorboardX.proto import event_pb2

import gorl
from gorl_cli._log import Loggers, check_loggers

ROWS = [
    {
        "seed": seed,
        "stage": 0,
        "env_steps": steps,
        "wall_seconds": 1.0,
        "return_mean": seed * 100.0 + steps,
        "diverged_at": "",
        "entropy": float("nan") if steps == 0 else -float(steps),
    }
    for steps in (0, 800, 1600)
    for seed in (5, 6, 7)
]


def events(directory):
    """What TensorBoard would show: the events of all files in order, without what a later file purges."""
    shown = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.HasField("session_log") and event.session_log.status == event_pb2.SessionLog.START:
                shown = [old for old in shown if old[1] < event.step]
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return shown


def log(run, rows):
    Loggers(run, rows).close()


def test_tensorboard_has_every_figure_of_every_seed(run_that_logs):
    run = run_that_logs("tensorboard")
    log(run, ROWS)
    for seed in run.seed_numbers:
        shown = events(run.directory / "tensorboard" / f"seed_{seed}")
        assert [event for event in shown if event[0] == "return_mean"] == [
            ("return_mean", steps, seed * 100.0 + steps) for steps in (0, 800, 1600)
        ]
        np.testing.assert_array_equal([event[2] for event in shown if event[0] == "entropy"], [np.nan, -800, -1600])
        assert {event[0] for event in shown} == {"return_mean", "entropy"}


def test_a_run_that_goes_on_is_in_tensorboard_once(run_that_logs):
    run = run_that_logs("tensorboard")
    log(run, ROWS)  # as far as a process came that was killed
    log(run, ROWS[:6])  # as far as its last checkpoint
    shown = events(run.directory / "tensorboard" / "seed_5")
    assert [event[1] for event in shown if event[0] == "return_mean"] == [0, 800]


def records(path):
    """The records in a file of Weights & Biases: a header, then LevelDB's log format, with no block full here."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    assert len(data) < 2**15
    position = 7
    while position + 7 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 6], "little")
        yield wandb_internal_pb2.Record.FromString(data[position + 7 : position + 7 + size])
        position += 7 + size


def test_weights_and_biases_works_offline_and_for_the_runs_of_a_sweep_side_by_side(run_that_logs, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs = [run_that_logs("wandb", name=name) for name in ("one", "other")]
    other_rows = [row | {"return_mean": row["return_mean"] + 1} for row in ROWS]
    both = [Loggers(run, []) for run in runs]
    for begin in range(0, len(ROWS), 3):
        for loggers, rows in zip(both, (ROWS, other_rows), strict=True):
            loggers.write(rows[begin : begin + 3])
    for loggers in both:
        loggers.close()
    wandb.teardown()  # as at the end of a process: its service has written everything then
    for run, more in zip(runs, (0, 1), strict=True):
        (path,) = run.directory.glob("wandb/offline-run-*/*.wandb")
        history = [
            {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for record in records(path)
            if record.HasField("history")
        ]
        means = [json.loads(row["seed_6/return_mean"]) for row in history]
        assert means == [600.0 + more, 1400.0 + more, 2200.0 + more]
        assert [json.loads(row["env_steps"]) for row in history] == [0, 800, 1600]


@contextlib.contextmanager
def no_file_can_grow():
    """As on a full disk, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_cannot_be_written_is_left_out(run_that_logs, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # the thread of tensorboardX ends with an error
    loggers = Loggers(run_that_logs("tensorboard"), ROWS[:3])
    many = {f"figure {number}": 0.0 for number in range(1000)}  # more than any queue holds
    with no_file_can_grow():
        loggers.write([row | many for row in ROWS[3:6]])
        loggers.write(ROWS[6:])
        loggers.close()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gorl:")]
    assert line == "gorl: --log tensorboard could not be written (File too large): the run goes on without it"


def test_a_process_ends_although_the_thread_that_writes_has_ended(tmp_path):
    # On a full disk it does. What is left for it is more than a pipe holds.
    program = """
import pathlib, sys
from tensorboardX.record_writer import RecordWriter
import gorl
from gorl_cli._log import TensorBoard
from gorl_cli._run import Run

def full(self, data):
    raise OSError(28, "No space left on device")

run = Run(pathlib.Path(sys.argv[1]), gorl.preset("MultiGoal"), "gorl-flow", 5, 1, 30.0)
logger = TensorBoard(run)
RecordWriter.write = full
figures = {"figure" * 9 + str(number): 1.0 for number in range(99)}
logger.write([{"seed": 5, "stage": 0, "env_steps": steps, **figures} for steps in range(99)])
logger.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], env=quick_environment(), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_by_default_nothing_is_logged(run_that_logs):
    run = run_that_logs()
    log(run, ROWS)
    assert list(run.directory.iterdir()) == []


def test_a_misspelt_logger():
    with pytest.raises(gorl.InputError, match="'tensorboard'"):
        check_loggers(["tensorbord"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed(name, command, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    code, _, error = command("train", "MultiGoal", "--log", name, "--out", tmp_path / "run")
    assert code == 2
    assert f"pip install 'gorl[{name}]'" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_that_logs(finished_run, tmp_path):
    def make(*log, name="run"):
        (tmp_path / name).mkdir()
        return dataclasses.replace(finished_run, directory=tmp_path / name, log=log, identifier=uuid.uuid4().hex)

    return make
