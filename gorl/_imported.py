"""Users' objects by name."""

import importlib
import os
import pathlib
import traceback
from collections.abc import Collection
from typing import Any

from ._errors import InputError, unknown_name


def imported(what: str, name: str) -> Any:
    """The object at `"package.module:attribute"`.

    **Arguments:**

    - `what`: its kind, such as `"environment"`.
    - `name`: module and attribute.

    **Raises:**

    `gorl.InputError` if it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or "/" in module:
        raise _named_by_file(what, name)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module can raise anything, and a script may exit
        raise InputError(f"the {what} {name!r} cannot be imported: {described(error)}.") from error


def not_found(what: str, name: str, names: Collection[str]) -> InputError:
    """An `InputError` for a name that is neither one of `names` nor one of the form that [`imported`][] takes."""
    if name.endswith(".py"):
        return _named_by_file(what, name)
    module, _, attribute = name.rpartition(".")
    if module and attribute:
        return InputError(f"no {what} is called {name!r}: if it is your own, write {module}:{attribute}.")
    return unknown_name(what, name, names)


def described(error: BaseException) -> str:
    """An error in one line, with the place in the user's own code that raised it."""
    said = " ".join(str(error).split()).rstrip(".")
    kind = type(error).__name__
    called = traceback.extract_tb(error.__traceback__)[1:]  # the first one is where it was caught
    frames = [frame for frame in called if not _is_of_import(frame.filename)]
    if not frames:  # it says by itself where it is, as an error of syntax does
        return said or kind
    # The innermost place in the user's code, not in a library that it calls.
    home = pathlib.Path(frames[0].filename).parent
    place = [frame for frame in frames if _belongs(pathlib.Path(frame.filename), home)][-1]
    file = os.path.relpath(place.filename)
    return f"{place.filename if file.startswith('..') else file}, line {place.lineno}: {kind}{': ' * bool(said)}{said}"


def _named_by_file(what: str, name: str) -> InputError:
    path, _, attribute = name.partition(":")
    file = pathlib.Path(path).with_suffix("")
    is_below = not file.is_absolute() and ".." not in file.parts
    module = ".".join(file.parts) if is_below else file.name
    right = f"{module}:{attribute or 'NAME'}"
    where = "" if is_below else f" where {file.parent} is the current directory or in PYTHONPATH"
    return InputError(f"the {what} {name!r} is given by a file, and has to be by a module: write {right}{where}.")


def _is_of_import(file: str) -> bool:
    return file.startswith("<frozen importlib") or file == importlib.__file__


def _belongs(file: pathlib.Path, home: pathlib.Path) -> bool:
    """Whether a file is in a directory, but not in a virtual environment inside it."""
    return file.is_relative_to(home) and "site-packages" not in file.relative_to(home).parts
