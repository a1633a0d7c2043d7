"""Compilation in the background, while earlier programs already run."""

import concurrent.futures
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol


class Lowered(Protocol):
    """A program that has been traced, as `.lower(...)` of a jitted function returns it."""

    def compile(self) -> object: ...


class BackgroundCompiler:
    """A context manager that compiles programs in the order in which they will be needed.

    It only fills the cache of the jitted functions. A call that does not wait, or that has another configuration of JAX
    than other threads, compiles for itself.

    **Arguments:**

    - `programs`: functions that trace each of them.
    """

    def __init__(self, programs: Mapping[Any, Callable[[], Lowered]]):
        # Python traces one program at a time, so the lock lets the first one finish first. XLA compiles it while the
        # next one is traced. More than two threads would hardly help.
        self._tracing = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=2, thread_name_prefix="gorl-compiling")
        self._compiling = {name: self._pool.submit(self._compile, lower) for name, lower in programs.items()}

    def __enter__(self) -> "BackgroundCompiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait(self, name: Hashable) -> None:
        """Waits for one program. An error in any of them is raised as soon as it is known."""
        for other, compiling in self._compiling.items():
            if other == name or compiling.done():
                compiling.result()

    def wait_for_all(self) -> None:
        """Waits for all programs, and raises the error of any of them."""
        for compiling in self._compiling.values():
            compiling.result()

    def _compile(self, lower: Callable[[], Lowered]) -> None:
        with self._tracing:
            lowered = lower()
        lowered.compile()
