"""How the benchmarks take input, answer bad input, and leave and show what they measured."""

import functools
import io
import json
import pathlib
import platform
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import jax
import matplotlib.figure
import rich.console
import rich.table
import typer

import gorl

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("gorl", "jax", "jaxlib", "equinox", "diffrax", "mujoco", "mujoco-mjx", "playground", "brax")
# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow; and grey.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#999999")
console = rich.console.Console(highlight=False, width=None if sys.stdout.isatty() else 150)
Out = Annotated[pathlib.Path, typer.Option(help="The directory of the results.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measurements of each, in turns; their medians are compared.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, as in gorl train.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="A task; may be given several times.")]
UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, which newer versions of typer contain


def benchmark(name: str, **options: Any) -> typer.Typer:
    """The command line of a benchmark, to be run with [`answer`][]."""
    return typer.Typer(name=name, add_completion=False, pretty_exceptions_enable=False, **options)


def answer(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of a benchmark. Bad input gets one sentence on standard error and exit code 2."""
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except (gorl.InputError, UsageError) as error:
        sentence = str(error) if isinstance(error, gorl.InputError) else error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        print(f"benchmarks.{app.info.name}: {sentence}", file=sys.stderr)
        sys.exit(2)


def parse_settings(
    config: gorl.Config, settings: Sequence[str] | None, allowed: Collection[str] | None = None
) -> dict[str, Any]:
    """The values that `--set FIELD=VALUE` gives to fields of a config, or to the allowed ones, by dotted name."""
    values = {}
    for setting in settings or []:
        name, text = gorl.internal.split_setting(setting)
        if allowed is not None and name not in allowed:
            raise gorl.internal.unknown_name("field that --set may set here", name, allowed)
        values[name] = gorl.internal.parse(config, name, text)
    return values


@functools.cache
def machine() -> dict[str, Any]:
    """The machine and the versions that a measurement was made with."""
    return {
        "machine": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": gorl.internal.num_cores(),
        "python": platform.python_version(),
    } | {name: version(name) for name in PACKAGES}


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes measurements to a JSON file, with the machine and the versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gorl.internal.write_whole(path, json.dumps({**content, **machine()}, indent=2) + "\n")


def table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints a row for each dict and a column for each key, texts to the left and numbers to the right."""
    shown = rich.table.Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        is_text = any(isinstance(row.get(name), str) for row in rows)
        shown.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(in_few_digits(row.get(name)) for name in columns))
    console.print(shown)


def in_few_digits(value: str | int | float | None) -> str:
    """A value as a table shows it: integers in full, other numbers with three digits."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def png(picture: matplotlib.figure.Figure) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.savefig(content, format="png", dpi=150)
    return content.getvalue()
