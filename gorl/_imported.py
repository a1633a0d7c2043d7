"""Things of the user's own, given by name."""

import importlib
from typing import Any

from ._errors import InputError


def imported(what: str, name: str) -> Any:
    """The object at `"package.module:attribute"`.

    **Arguments:**

    - `what`: what it is wanted as, such as `"environment"`.
    - `name`: where it is.

    **Raises:**

    `gorl.InputError` if it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # a relative name is a TypeError
        raise InputError(f"the {what} {name!r} cannot be imported: {error}.") from error
