"""What the benchmarks share: clocks, where they were read, and how what was found is left and shown."""

import functools
import io
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import matplotlib.figure
import rich.console
import rich.table
import typer

import gorl

RESULTS = pathlib.Path(__file__).parent / "results"
GORL = (sys.executable, "-m", "gorl_cli")
PACKAGES = ("gorl", "jax", "jaxlib", "equinox", "diffrax", "mujoco-mjx", "brax")
console = rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else 150)


@functools.cache
def machine() -> dict[str, Any]:
    """Where it was measured, and with what."""
    return {
        "machine": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": num_cores(),
    } | {name: version(name) for name in PACKAGES}


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Leaves figures in a JSON file, with where they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gorl.internal.write_whole(path, json.dumps({**content, **machine()}, indent=2) + "\n")


def num_cores() -> int | None:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def with_settings(config: gorl.Config, settings: list[str] | None) -> gorl.Config:
    """A config with fields set by texts such as `learner.num_envs=256`.

    **Raises:**

    `gorl.InputError` for a text that sets nothing, or a config that cannot be.
    """
    values = {}
    for setting in settings or []:
        name, separator, text = setting.partition("=")
        if not separator:
            raise gorl.InputError(f"--set {setting} sets nothing: write it as FIELD=VALUE.")
        values[name.strip()] = gorl.internal.parse(config, name.strip(), text.strip())
    return gorl.replace(config, values)


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """A function compiled for its arguments, and the seconds that took, tracing included."""
    began = time.perf_counter()
    run = eqx.filter_jit(function).lower(*arguments).compile()  # pyright: ignore[reportFunctionMemberAccess]
    return run, time.perf_counter() - began


def seconds(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    """The median time of a call, once it has been compiled and its buffers are there."""
    jax.block_until_ready(function(*arguments))
    return statistics.median(once(function, *arguments) for _ in range(repeats))


def once(function: Callable[..., Any], *arguments: Any) -> float:
    """The time of one call until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def process_seconds(*command: str) -> float:
    """How long a process takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def timed(
    config: gorl.Config, start: jax.Array | gorl.TrainState
) -> Iterator[tuple[gorl.ScheduleStep, gorl.TrainState, float]]:
    """The chunks of a run, each with the state after it and its seconds until everything is there.

    The first of them is compiled in its time, and with it all others: nothing is compiled beside what is measured.
    """
    last = time.perf_counter()
    gorl.precompile(config, start)
    for step, state in gorl.iterate(config, start):
        jax.block_until_ready(state)
        yield step, state, time.perf_counter() - last
        last = time.perf_counter()


def png(picture: matplotlib.figure.Figure) -> bytes:
    """A picture as a file's content."""
    content = io.BytesIO()
    picture.savefig(content, format="png", dpi=150)
    return content.getvalue()


def table(title: str, columns: dict[str, list[str]], left: tuple[str, ...] = ()) -> None:
    """Prints columns by their headings; numbers, which most are, to the right."""
    shown = rich.table.Table(title=title, title_justify="left")
    for name in columns:
        shown.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        shown.add_row(*row)
    console.print(shown)


def answer(app: typer.Typer) -> None:
    """Runs a benchmark as a program: bad input is one sentence on standard error, and exit code 2."""
    try:
        app()
    except gorl.InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
