"""What a process prints, the single files that it writes, and how a signal stops it."""

import contextlib
import errno
import json
import math
import os
import pathlib
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Collection
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # signals are handled before anything slow is imported
    import rich.console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
}


# --- Words. ---


def say(line: str) -> None:
    """Prints a line that is no result to standard error, so that standard output holds results only."""
    with contextlib.suppress(OSError):  # a log on a full disk is no reason to end a run
        print(f"gorl: {line}", file=sys.stderr, flush=True)


def plain_console() -> "rich.console.Console":
    """Standard output for tables and lines. It takes no name for markup."""
    import rich.console

    # In a cell, `!` gives a command a terminal, but the cell keeps every state of a bar. FORCE_COLOR, which rich takes
    # for a terminal, stands in the environment of every kernel and of many logs.
    is_terminal = sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ
    return rich.console.Console(
        highlight=False, markup=False, emoji=False, force_terminal=None if is_terminal else False
    )


def plural(count: int, noun: str) -> str:
    """A count and a noun, such as "2 seeds"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def command(*words: object) -> str:
    """A command that can be copied into a shell."""
    return shlex.join(map(str, words))


def as_json(content: Any) -> str:
    """Plain data as a JSON text. NaN and infinity become `null`, because JSON has neither."""
    return json.dumps(_finite(content), indent=2) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def check_packages(what: str, extra: str, packages: Collection[str]) -> None:
    """Raises an error if packages of an extra are not installed that `what`, such as an option, needs."""
    import importlib.util

    import gorl

    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise gorl.InputError(
            f"{what} needs {' and '.join(missing)}, which {are} not installed: pip install 'gorl[{extra}]'."
        )


# --- Files. ---


def check_output(path: pathlib.Path, suffixes: Collection[str]) -> str:
    """Checks that a file can be written, and returns its suffix in lower case.

    `suffixes` are those that it may have, in lower case; `""` among them allows none.
    """
    import gorl

    suffix = path.suffix.lower()
    if suffix not in suffixes:
        named = ", ".join(filter(None, suffixes))
        raise gorl.InputError(f"-o {path} must end in one of {named}{', or have no suffix' * ('' in suffixes)}.")
    if path.is_dir():
        raise gorl.InputError(f"-o {path} is a directory: give a file.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise gorl.InputError(f"-o {path} cannot be written: give a file in a directory that exists and is writable.")
    return suffix


def write_output(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    import gorl

    try:
        gorl.internal.write_whole(path, content)
    except OSError as error:
        raise gorl.InputError(
            f"-o {path} cannot be written ({error.strerror}): {advice(error)}, or give another file."
        ) from error


def advice(error: OSError) -> str:
    """What a person can do if a file could not be written."""
    return _ADVICE.get(error.errno or 0, "remove the cause")


# --- Signals: Ctrl-C, and the SIGTERM of a cluster or a time limit. ---


def stop_at_once() -> None:
    """From now on a signal ends the process at once and silently.

    The exit code is 128 plus the number of the signal, as in a shell. A thread waits for the signal. Python's own
    handlers have to wait for the end of a long compilation, and an exception that they raise may be swallowed by the
    code that it interrupts.
    """
    listening, telling = socket.socketpair()
    telling.setblocking(False)
    for number in _heeded():
        signal.signal(number, _end)  # in case other code replaces the wakeup
    signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(listening, telling), name="gorl-signals", daemon=True).start()


class Stop:
    """From [`heed`][] on, the first signal is noted and prints a line; the second one ends the process.

    A context manager. It does nothing outside the main thread, because Python allows handlers there only.
    """

    def __init__(self, notice: str):
        self._notice = notice
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> "Stop":
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def heed(self) -> None:
        """Called as soon as there is something to lose. Until then a signal ends the process at once."""
        if self._before or self._received is not None or threading.current_thread() is not threading.main_thread():
            return
        self._wakeup = signal.set_wakeup_fd(-1)
        self._before = {number: signal.signal(number, self._note) for number in _heeded()}

    @property
    def exit_code(self) -> int | None:
        """128 plus the number of the signal, as in a shell; `None` while there was none."""
        return None if self._received is None else 128 + self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()
        say(self._notice)

    def _restore(self) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            self._before = {}


def _heeded() -> list[signal.Signals]:
    """The signals, without those that the process was told to ignore, as in the background of a script."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _listen(listening: socket.socket, telling: socket.socket) -> None:
    """Waits for the number of a signal. It holds both sockets, so that neither is closed."""
    while True:
        (number,) = listening.recv(1)
        if number in _SIGNALS:
            _end(number, None)


def _end(number: int, frame: FrameType | None) -> None:
    if os.isatty(1):
        os.write(1, b"\r\x1b[2K\x1b[?25h")  # removes the progress bar and shows the cursor again
    os._exit(128 + number)
