"""Writing into a directory that may be gone."""

import errno
import shutil

import pytest

from gorl_cli._run import GoneError, Run, try_to_write


@pytest.fixture
def run(tiny, tmp_path):
    made = Run(tmp_path / "run", tiny, "gorl-flow", 0, 1, 30.0, identifier="mine")
    made.create()
    return made


def move(directory):
    directory.rename(directory.parent / "moved")


def replace(directory):
    move(directory)
    directory.mkdir()
    (directory / "run.json").write_text('{"identifier": "another\'s"}')


def put_a_file_there(directory):
    move(directory)
    directory.write_text("precious")


@pytest.mark.parametrize("change", [move, shutil.rmtree, replace, put_a_file_there])
def test_nothing_is_written_where_the_directory_was(run, tmp_path, change):
    assert try_to_write([run], "nothing", lambda: None, "")
    change(tmp_path / "run")
    with pytest.raises(GoneError):
        try_to_write([run], "nothing", lambda: pytest.fail("it was written"), "")


def test_a_directory_that_goes_while_it_is_written_is_gone(run, tmp_path):
    def write():
        move(tmp_path / "run")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with pytest.raises(GoneError):
        try_to_write([run], "nothing", write, "")


def test_a_write_that_fails_is_said_and_nothing_else_happens(run, capsys):
    def write():
        raise OSError(errno.ENOSPC, "No space left on device")

    assert not try_to_write([run], "no file", write, "the run goes on")
    assert capsys.readouterr().err == "gorl: no file could be written (No space left on device): the run goes on\n"
