"""What a process writes and prints, also where there is no room, and how a signal stops it.

What a run saves when it is stopped is tested in `test_cli_resume.py`.
"""

import errno
import io
import os
import pty
import signal
import subprocess
import sys

import pytest

import gorl
from gorl_cli._process import say, write_output
from gorl_cli._progress import Progress

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # minutes without an instruction of Python's


@pytest.fixture
def begun():
    """Begins a Python program that says when it is ready; it is killed in the end."""
    processes = []

    def begin(*lines):
        program = "\n".join(
            ["import hashlib, os, signal, time", "from gorl_cli._process import Stop, stop_at_once", *lines]
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def end(process):
    output, error = process.communicate(timeout=30)
    return process.returncode, output, error


@BOTH
def test_a_signal_ends_the_process_at_once_and_quietly(begun, number):
    process = begun("stop_at_once()", "print('ready', flush=True)", BUSY)
    process.send_signal(number)
    assert end(process) == (128 + number, "", "")


@BOTH
def test_no_one_who_is_running_can_drop_it(begun, number):
    process = begun(
        "class Dropping:",
        "    def __del__(self):",  # an exception in here goes no further
        "        print('ready', flush=True)",
        f"        {BUSY}",
        "stop_at_once()",
        "Dropping()",
        "time.sleep(1000)",
    )
    process.send_signal(number)
    assert end(process) == (128 + number, "", "")


def test_what_was_to_be_ignored_still_is(begun):
    process = begun(
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "stop_at_once()",
        "with Stop('stopping') as stop:",
        "    stop.heed()",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "    assert stop.exit_code is None",
        "print('ready', flush=True)",
    )
    assert end(process) == (0, "", "")


@BOTH
def test_the_first_signal_is_noted_once_there_is_something_to_lose_and_the_second_ends_the_process(begun, number):
    process = begun(
        "stop_at_once()",
        "with Stop('stopping') as stop:",
        "    stop.heed()",
        f"    os.kill(os.getpid(), {number:d})",
        "    stop.heed()",
        "    print('ready', flush=True)",
        "    print(stop.exit_code, flush=True)",
        f"    {BUSY}",
    )
    assert process.stdout.readline() == f"{128 + number}\n"
    process.send_signal(number)
    assert end(process) == (128 + number, "", "gorl: stopping\n")


@BOTH
@pytest.mark.parametrize(
    "lines",
    [
        ["with Stop('stopping') as stop:", "    print('ready', flush=True)", f"    {BUSY}"],
        ["with Stop('stopping') as stop:", "    stop.heed()", "print('ready', flush=True)", BUSY],
    ],
    ids=["before", "after"],
)
def test_before_and_after_that_the_first_one_does(begun, number, lines):
    process = begun("stop_at_once()", *lines)
    process.send_signal(number)
    assert end(process) == (128 + number, "", "")


# --- Files and words. ---


@pytest.mark.parametrize(
    ("has_terminal", "variables", "has_bar"),
    [
        (True, {}, True),
        (True, {"JPY_PARENT_PID": "1"}, False),  # `!gorl train` in a notebook
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),  # %%bash in a notebook, or a log that shows colours
    ],
)
def test_a_bar_is_drawn_only_where_it_can_be_drawn_over(has_terminal, variables, has_bar):
    ours, theirs = pty.openpty() if has_terminal else os.pipe()
    inherited = {name: value for name, value in os.environ.items() if name not in ("JPY_PARENT_PID", "FORCE_COLOR")}
    program = "from gorl_cli._process import plain_console; print(plain_console().is_terminal)"
    environment = inherited | {"TERM": "xterm"} | variables
    subprocess.run([sys.executable, "-c", program], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    assert os.read(ours, 100).split() == [str(has_bar).encode()]
    os.close(ours)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "make it writable"), (errno.EIO, "remove the cause")],
)
def test_a_file_that_cannot_be_written_is_one_sentence_with_advice_for_its_cause(tmp_path, monkeypatch, number, words):
    path = tmp_path / "file"
    path.write_text("precious")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(gorl.InputError, match=rf"-o .*file cannot be written \({os.strerror(number)}\): {words}, or"):
        write_output(path, b"new")
    assert path.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_on_a_full_disk_ends_no_run(tiny, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    say("a line")
    with Progress(tiny, "a run", ["seed 0"]):
        pass
