"""The files that a command is asked to write."""

import os
import pathlib
from collections.abc import Collection

import gorl

from ._place import advice


def check_output(path: pathlib.Path, suffixes: Collection[str]) -> str:
    """Makes sure that a file can be written, before anything is computed for it.

    **Arguments:**

    - `path`: the file.
    - `suffixes`: what its name may end in, in lower case; `""` among them for a name without a suffix.

    **Returns:**

    What it ends in, in lower case.

    **Raises:**

    `gorl.InputError` if it ends in something else, or is a directory, or its own is not there or not writable.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        named = ", ".join(filter(None, suffixes))
        raise gorl.InputError(f"-o {path} must end in one of {named}{', or have no suffix' * ('' in suffixes)}.")
    if path.is_dir():
        raise gorl.InputError(f"-o {path} is a directory: give a file.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise gorl.InputError(f"-o {path} cannot be written: give a file in a directory that is there and writable.")
    return suffix


def write_output(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all.

    **Raises:**

    `gorl.InputError` if it cannot be written, such as on a full disk.
    """
    try:
        gorl.internal.write_whole(path, content)
    except OSError as error:
        raise gorl.InputError(
            f"-o {path} cannot be written ({error.strerror}): {advice(error)}, or give another file."
        ) from error
