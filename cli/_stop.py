"""Stopping when asked to: Ctrl-C, and the SIGTERM of a cluster or a time limit."""

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_at_once() -> None:
    """From now on a signal ends the process at once and without a word, whatever it is busy with.

    The exit code is 128 and the number of the signal, as a shell has it. A thread sees to it: Python itself comes to a
    handler only between two of its own instructions, of which a long compilation is one, and an exception that a
    handler raises there may be dropped by whoever was running.
    """
    listening, telling = socket.socketpair()
    telling.setblocking(False)
    for number in _heeded():
        signal.signal(number, _end)  # should somebody take the wakeup away
    signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(listening, telling), name="gorl-signals", daemon=True).start()


class Stop:
    """Takes note of a signal instead of ending at once, from [`heed`][] on; a second one does end the process.

    A context manager. Outside the main thread, where Python allows no handlers, it does nothing.

    **Arguments:**

    - `notice`: what to say when the signal comes.
    """

    def __init__(self, notice: str):
        self._notice = notice
        self._received: int | None = None
        self._before: dict[int, object] = {}
        self._wakeup = -1

    def __enter__(self) -> "Stop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def heed(self) -> None:
        """To be called as soon as there is something that a process which ends at once would lose."""
        if self._before or self._received is not None or threading.current_thread() is not threading.main_thread():
            return
        self._wakeup = signal.set_wakeup_fd(-1)
        self._before = {number: signal.signal(number, self._take_note) for number in _heeded()}

    @property
    def exit_code(self) -> int | None:
        """128 and the number of the signal, as a shell has it; `None` while there was none."""
        return None if self._received is None else 128 + self._received

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()
        with contextlib.suppress(OSError):  # a log on a full disk
            print(self._notice, file=sys.stderr, flush=True)

    def _restore(self) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
            signal.set_wakeup_fd(self._wakeup)
            self._before = {}


def _heeded() -> list[signal.Signals]:
    """A signal that the process was told to ignore, as in the background of a script, stays ignored."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _listen(listening: socket.socket, telling: socket.socket) -> None:
    """Waits for the number of a signal. It holds both ends of the line, so that neither is closed."""
    while True:
        (number,) = listening.recv(1)
        if number in _SIGNALS:
            _end(number, None)


def _end(number: int, frame: FrameType | None) -> None:
    if os.isatty(1):
        os.write(1, b"\r\x1b[2K\x1b[?25h")  # away with a bar, and back with the cursor that it hides
    os._exit(128 + number)
