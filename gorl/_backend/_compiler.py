"""Compiling in the background what is going to be run, while what comes before it already runs."""

import concurrent.futures
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol


class Lowered(Protocol):
    """A program that has been traced, as `.lower(...)` of a jitted function returns it."""

    def compile(self) -> object: ...


class BackgroundCompiler:
    """Programs that are being compiled, in the order in which they will be needed; a context manager.

    It only warms the cache that a call of the jitted function looks into. Whoever calls it without waiting, or under
    another configuration of JAX than other threads have, compiles for itself.

    **Arguments:**

    - `programs`: how each of them is traced.
    """

    def __init__(self, programs: Mapping[Any, Callable[[], Lowered]]):
        # Python traces one at a time. Taking turns has the first one done first; XLA compiles the one that was traced
        # beside the tracing of the next, and has little to do for more than two cores.
        self._tracing = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=2, thread_name_prefix="gorl-compiling")
        self._compiling = {name: self._pool.submit(self._compile, lower) for name, lower in programs.items()}

    def __enter__(self) -> "BackgroundCompiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait(self, name: Hashable) -> None:
        """Waits for one of the programs. Raises what went wrong with any of them, as soon as that is known."""
        for other, compiling in self._compiling.items():
            if other == name or compiling.done():
                compiling.result()

    def wait_for_all(self) -> None:
        """Waits for every program, and raises what went wrong with any of them."""
        for compiling in self._compiling.values():
            compiling.result()

    def _compile(self, lower: Callable[[], Lowered]) -> None:
        with self._tracing:
            lowered = lower()
        lowered.compile()
