"""Silence for MuJoCo's warnings."""

import contextlib
import threading
from collections.abc import Iterator

import mujoco

_lock = threading.Lock()
_num_inside = 0
_handler = None


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silences MuJoCo's warnings in all threads, as long as any thread is inside.

    Some models of Playground and Brax use attributes that the newest MuJoCo deprecates. A simulation that blows up
    warns at every step, and it ends its episode anyway. MuJoCo prints each warning and appends it to a file in the
    working directory; a library must do neither.
    """
    global _num_inside, _handler
    with _lock:
        if _num_inside == 0:
            _handler = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]
            mujoco.set_mju_user_warning(_say_nothing)  # pyright: ignore[reportAttributeAccessIssue]
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                mujoco.set_mju_user_warning(_handler)  # pyright: ignore[reportAttributeAccessIssue]


def _say_nothing(message: str) -> None:
    del message
