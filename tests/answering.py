"""Runs a benchmark in this process as a shell would."""

import contextlib
import io

from benchmarks._report import answer


def run(app, *arguments):
    """The exit code, the standard output and the standard error."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            answer(app, [str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()
