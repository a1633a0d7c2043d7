"""Words beside the results: to people in a line on standard error, to programs as JSON."""

import contextlib
import json
import math
import shlex
import sys
from typing import Any

import rich.console


def say(line: str) -> None:
    """Says something in a line that is no result, so that standard output holds nothing else."""
    with contextlib.suppress(OSError):  # a log on a full disk is no reason to end a run
        print(f"gorl: {line}", file=sys.stderr, flush=True)


def plain_console() -> rich.console.Console:
    """Standard output for tables and lines, in which a name that a person chose is no markup, whatever it is."""
    return rich.console.Console(highlight=False, markup=False, emoji=False)


def command(*words: object) -> str:
    """A command to be copied into a shell."""
    return shlex.join(map(str, words))


def as_json(content: Any) -> str:
    """Plain data as a JSON text. JSON has no NaN and no infinity: they become `null`."""
    return json.dumps(_finite(content), indent=2) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
