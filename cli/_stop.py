"""Stopping when asked to: Ctrl-C, and the SIGTERM of a cluster or a time limit."""

import signal
import sys
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Takes note of the first signal instead of dying of it; a second one ends the process as usual.

    A context manager. Outside the main thread, where Python allows no handlers, it does nothing.

    **Arguments:**

    - `notice`: what to say when the signal comes.
    """

    def __init__(self, notice: str):
        self._notice = notice
        self._received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            # A signal that the process was told to ignore, as in the background of a script, stays ignored.
            heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._take_note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def exit_code(self) -> int | None:
        """128 and the number of the signal, as a shell has it; `None` while there was none."""
        return None if self._received is None else 128 + self._received

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        print(self._notice, file=sys.stderr, flush=True)
