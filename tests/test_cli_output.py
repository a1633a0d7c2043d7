"""What is written and said where there is no room."""

import errno
import io
import os
import sys

import pytest

import gorl
from gorl_cli._output import write_output
from gorl_cli._progress import Progress
from gorl_cli._say import say


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "make it writable"), (errno.EIO, "see to that")],
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
