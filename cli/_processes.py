"""`--coordinator HOST:PORT --num-processes N --process-id I`: processes that train one run together.

Before JAX joins the processes, each one connects to process 0, at the same address and port. These connections stay.
Over them the processes agree on what the loop does next, and each notices at once if another one is killed. JAX itself
would wait for minutes, and then end the process without a sentence.
"""

import contextlib
import dataclasses
import json
import math
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

import jax
import typer

import gorl

from ._process import plural, say

AUTO = "auto"
_GRACE = 10.0  # seconds in which a process may end by itself after another one has ended
# A machine that is gone sends nothing. These seconds and probes let a connection notice it within half a minute.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_OPTIONS = ("--coordinator", "--num-processes", "--process-id")
_HELLO_SECONDS = 5.0  # in which a process says who it is, after it has connected
_LONGEST = 4096  # bytes of the first message
_SHARE, _END, _GONE = "share", "end", "gone"  # the kinds of messages


class _EndedError(Exception):
    """Another process has ended the run, with an exit code and a sentence, which is empty at a proper end."""

    def __init__(self, exit_code: int, sentence: str):
        super().__init__(sentence)
        self.exit_code = exit_code


class Processes:
    """The processes that train together, of which this is one. A context manager, which ends all of them.

    **Attributes:**

    - `index`: of this process. Process 0 writes the files and shows the progress.
    - `count`: the number of processes.
    """

    def __init__(self, index: int = 0, count: int = 1, links: Mapping[int, socket.socket] | None = None):
        self.index = index
        self.count = count
        self._links = dict(links or {})
        self._received: dict[int, queue.Queue[Any]] = {peer: queue.Queue() for peer in self._links}
        self._is_leaving = threading.Event()
        self._lock = threading.Lock()
        self._readers = [
            threading.Thread(target=self._read, args=(peer,), name=f"gorl-process-{peer}", daemon=True)
            for peer in self._links
        ]
        for reader in self._readers:
            reader.start()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.index == 0

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.count == 1 or error is None:
            return
        if isinstance(error, typer.Exit):
            self._leave(error.exit_code, "")
        if isinstance(error, _EndedError):
            if str(error):
                say(str(error))
            self._leave(error.exit_code, "")
        if isinstance(error, gorl.InputError):
            say(str(error))
            self._leave(2, f"{self._name()} refuses: {error}")
        # What JAX raises if another process is gone is not the reason. That comes from the thread of its connection.
        time.sleep(1.0)
        traceback.print_exception(error)
        self._leave(1, f"{self._name()} has ended with an error ({type(error).__name__}), so all of them end.")

    # --- What the processes agree on. All of them call these at the same time. ---

    def gather(self, content: Any) -> list[Any]:
        """What every process has, by index. `content` is any JSON value."""
        if self.count == 1:
            return [content]
        if not self.is_first:
            self._send(0, _SHARE, content)
            return self._next(0)
        contents = [content, *(self._next(peer) for peer in sorted(self._links))]
        for peer in self._links:
            self._send(peer, _SHARE, contents)
        return contents

    def meet(self) -> None:
        """Waits until every process is here."""
        self.gather(None)

    def compare(self, content: Mapping[str, Any]) -> None:
        """Raises `gorl.InputError` if something, which is called by its name, differs between processes."""
        texts = {name: json.dumps(value, default=str) for name, value in content.items()}
        of_first, *of_others = self.gather(texts)
        for index, of_other in enumerate(of_others, 1):
            changed = [name for name, text in of_first.items() if of_other.get(name) != text]
            if changed:
                raise gorl.InputError(
                    f"process {index} differs from process 0 in {' and '.join(changed)}: start every process with the "
                    "same command and the same versions."
                )

    def agree(self, exit_code: int | None, is_due: bool) -> tuple[int | None, bool]:
        """The exit code of a process that a signal stops, or `None`, and whether a checkpoint is due.

        It is if a process stops, or if process 0 says so.
        """
        everyone = self.gather([exit_code, is_due])
        codes = [code for code, _ in everyone if code is not None]
        return (codes[0] if codes else None), bool(codes) or everyone[0][1]

    def wait_for_end(self) -> int:
        """The exit code with which process 0 ends the run. Only the other processes call this."""
        while True:
            try:
                self._next(0)
            except _EndedError as ended:
                if str(ended):
                    raise
                return ended.exit_code

    def whole(self, state: gorl.TrainState) -> gorl.TrainState:
        """A state on one device of this process."""
        return state if self.count == 1 else gorl.internal.on_one_device(state)

    def results(
        self, step: gorl.ScheduleStep, state: gorl.TrainState, before: gorl.TrainState | None
    ) -> gorl.TrainState:
        """A state whose results this process can read.

        They are gathered after an evaluation and a refinement. In between they are those of `before`, which this
        returned after the step before, so that only a divergence is seen late. `None` before the first step.
        """
        if self.count == 1:
            return state
        names = ("iterations", "evaluated_at", "returns", "metrics", "fits", "diverged_at", "divergence")
        if step.phase == gorl.Phase.LEARN and before is not None:
            known = {name: getattr(before, name) for name in names}
            return dataclasses.replace(state, **known | {"iterations": before.iterations + 1})
        results = gorl.internal.on_one_device({name: getattr(state, name) for name in names})
        return dataclasses.replace(state, **results)

    # --- Connections. ---

    def _name(self) -> str:
        return f"process {self.index} of {self.count}"

    def _send(self, peer: int, kind: str, content: Any) -> None:
        with contextlib.suppress(OSError):  # the thread that reads from the connection says that it is broken
            self._links[peer].sendall(_line([kind, content]))

    def _next(self, peer: int) -> Any:
        content = self._received[peer].get()
        if isinstance(content, _EndedError):
            raise content
        return content

    def _read(self, peer: int) -> None:
        """Reads from a connection. If it breaks, this process ends."""
        with contextlib.suppress(OSError, ValueError), self._links[peer].makefile("rb") as stream:
            for line in stream:
                kind, content = json.loads(line)
                if kind == _SHARE:
                    self._received[peer].put(content)
                elif kind == _END:
                    self._heed_end(*content)
                    return
                else:
                    self._abandon(content)
        if not self._is_leaving.is_set():
            self._abandon(peer)

    def _heed_end(self, exit_code: int, sentence: str) -> None:
        """Ends this process because another one has. Its main thread does that, unless it waits in a computation."""
        for received in self._received.values():
            received.put(_EndedError(exit_code, sentence))
        if self.is_first:
            self._tell(_END, [exit_code, sentence])
        if not self._is_leaving.wait(_GRACE):
            say(sentence or f"another process has ended, so {self._name()} ends.")
            _exit(exit_code)

    def _abandon(self, gone: int) -> NoReturn:
        """Ends this process at once because another one is gone: JAX aborts the process if it notices first."""
        with self._lock:  # of several threads the first one speaks
            say(
                f"process {gone} of {self.count} is gone, so {self._name()} ends: go on from the newest checkpoint "
                "with gorl resume."
            )
            if self.is_first:
                self._is_leaving.set()
                self._tell(_GONE, gone)
                self._wait_for_others(_GRACE / 2)
            _exit(1)

    def _leave(self, exit_code: int, sentence: str) -> NoReturn:
        """Ends this process, and tells the others. Process 0 is the last, since JAX's runtime needs it."""
        self._is_leaving.set()
        self._tell(_END, [exit_code, sentence])
        if self.is_first:
            self._wait_for_others(2 * _GRACE)
        _exit(exit_code)

    def _tell(self, kind: str, content: Any) -> None:
        for peer in self._links:
            self._send(peer, kind, content)

    def _wait_for_others(self, seconds: float) -> None:
        """Waits until the other processes have ended, but not for ever."""
        deadline = time.monotonic() + seconds
        for reader in self._readers:
            if reader is not threading.current_thread():
                reader.join(max(0.0, deadline - time.monotonic()))


ALONE = Processes()


# --- How they meet. ---


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float) -> Processes:
    """Joins the processes that train one run. Nothing may be computed by JAX before.

    **Arguments:**

    - `coordinator`: `HOST:PORT`, where process 0 listens; `auto` to let JAX find the cluster; `None` for one process.
    - `num_processes`, `process_id`: the number of processes, and which of them this is; `None` with `auto`.
    - `timeout`: seconds in which the processes have to meet.

    **Raises:**

    `gorl.InputError` if the options do not fit together, or the processes do not meet.
    """
    local_devices = None
    if coordinator == AUTO:
        if num_processes is not None or process_id is not None:
            raise gorl.InputError(
                f"--coordinator {AUTO} finds the processes itself: leave out --num-processes and --process-id."
            )
        coordinator, num_processes, process_id, local_devices = _found_cluster(timeout)
    given = (coordinator, num_processes, process_id)
    if coordinator is None and num_processes is None and process_id is None:
        return ALONE
    if coordinator is None or num_processes is None or process_id is None:
        missing = [option for option, value in zip(_OPTIONS, given, strict=True) if value is None]
        raise gorl.InputError(
            f"{' and '.join(missing)} must be given as well: several processes need {', '.join(_OPTIONS[:2])} and "
            f"{_OPTIONS[2]}."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise gorl.InputError(
            f"--coordinator {coordinator} is no address: give HOST:PORT of process 0, as node1:8476, or {AUTO}."
        )
    if num_processes < 1:
        raise gorl.InputError(f"--num-processes must be at least 1, not {num_processes}.")
    if not 0 <= process_id < num_processes:
        raise gorl.InputError(
            f"--process-id must be from 0 to {num_processes - 1}, one for each process, not {process_id}."
        )
    if not timeout > 0:
        raise gorl.InputError(f"--coordinator-timeout must be above 0 seconds, not {timeout:g}.")
    if num_processes == 1:
        return ALONE
    address = (host.strip("[]"), int(port))
    deadline = time.monotonic() + timeout
    if process_id == 0:
        links = _accept(address, num_processes, timeout, deadline)
    else:
        links = {0: _connect(address, num_processes, process_id, timeout, deadline)}
    # SIGTERM is gorl's: JAX would take it for a notice that the machine will be needed.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, num_processes, process_id, local_devices)
    here, everywhere = jax.local_device_count(), jax.device_count()
    say(f"process {process_id} of {num_processes}, with {here} of {plural(everywhere, 'device')}")
    return Processes(process_id, num_processes, links)


def _found_cluster(timeout: float) -> tuple[str, int, int, Any]:
    """The address of process 0, the number of processes, the index of this one and its devices, as JAX finds them."""
    # JAX joins a cluster and finds it in one function. Only this part of it finds it.
    from jax._src.clusters import ClusterEnv

    address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, math.ceil(timeout)
    )
    if address is None or count is None or index is None:
        raise gorl.InputError(
            f"--coordinator {AUTO} finds no cluster here: start the command with srun or mpirun, or give HOST:PORT, "
            "--num-processes and --process-id."
        )
    return address, count, index, devices


def _accept(address: tuple[str, int], count: int, timeout: float, deadline: float) -> dict[int, socket.socket]:
    """Waits at process 0 for the others. It lets all go on, or refuses all with the same sentence."""
    host, port = address
    try:
        listening = socket.create_server(("", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise gorl.InputError(
            f"--coordinator {host}:{port}: process 0 cannot listen there ({reason}). Give --process-id 0 once, and "
            "another port if this one is taken."
        ) from error
    links: dict[int, socket.socket] = {}
    with listening, contextlib.ExitStack() as refused:
        try:
            while len(links) < count - 1:
                listening.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    link, _ = listening.accept()
                except TimeoutError as error:
                    missing = sorted(set(range(1, count)) - set(links))
                    raise gorl.InputError(
                        f"process {', '.join(map(str, missing))} of {count} did not come within {timeout:g} s: start "
                        "all processes, or give a longer --coordinator-timeout."
                    ) from error
                refused.enter_context(link)
                hello = _received(link, min(deadline, time.monotonic() + _HELLO_SECONDS))
                if hello is None or not isinstance(hello.get("index"), int):
                    link.close()  # it was no process of gorl
                    continue
                others = (0, *links)
                links[hello["index"] if hello["index"] not in others else -1] = link  # to be answered as well
                if hello.get("count") != count:
                    raise gorl.InputError(
                        f"process {hello['index']} has --num-processes {hello.get('count')}, and process 0 has "
                        f"{count}: give every process the same number."
                    )
                if hello["index"] in others:
                    raise gorl.InputError(
                        f"--process-id {hello['index']} was given to two processes: give each its own, from 0 to "
                        f"{count - 1}."
                    )
        except gorl.InputError as error:
            _answer(links, str(error))
            raise
        refused.pop_all()
    _answer(links, None)
    return {index: _lasting(link) for index, link in links.items()}


def _connect(address: tuple[str, int], count: int, index: int, timeout: float, deadline: float) -> socket.socket:
    """Connects to process 0, as soon as it listens, and waits until it lets all processes go on."""
    host, port = address
    answer, reason = None, ""
    while answer is None and time.monotonic() < deadline:
        try:
            link = socket.create_connection(address, timeout=max(0.01, deadline - time.monotonic()))
        except OSError as error:
            reason = f" ({error.strerror or error})"
            time.sleep(0.1)
            continue
        with contextlib.suppress(OSError):
            link.sendall(_line({"index": index, "count": count}))
        answer = _received(link, deadline + 1.0)  # process 0 says first that the time is over
        if answer is None:
            link.close()
        elif answer["refusal"] is not None:
            link.close()
            raise gorl.InputError(answer["refusal"])
        else:
            return _lasting(link)
    raise gorl.InputError(
        f"process 0 did not answer at --coordinator {host}:{port} within {timeout:g} s{reason}: start it there, or "
        "give its address, or a longer --coordinator-timeout."
    )


def _answer(links: Mapping[int, socket.socket], refusal: str | None) -> None:
    for link in links.values():
        with contextlib.suppress(OSError):
            link.sendall(_line({"refusal": refusal}))


def _received(link: socket.socket, deadline: float) -> dict[str, Any] | None:
    """The message with which a connection begins; `None` if there is none."""
    content = b""
    try:
        while not content.endswith(b"\n"):
            link.settimeout(max(0.01, deadline - time.monotonic()))
            byte = link.recv(1)  # what follows the message is read later
            if not byte or len(content) > _LONGEST:
                return None
            content += byte
        message = json.loads(content)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _lasting(link: socket.socket) -> socket.socket:
    """A connection that waits for as long as the other machine is there."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _exit(exit_code: int) -> NoReturn:
    """Ends the process without JAX's own farewell, which waits for processes that may be gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(exit_code)
