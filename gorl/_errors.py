"""The error type for bad input, and the nearest-name hint that goes with a misspelling."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the caller gave is wrong; the message is one sentence that says how to fix it."""


class DamagedFileError(InputError):
    """A file is not what was written to it, so that another copy of it may help."""


def unknown_name(what: str, name: str, names: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not one of `names`, with the nearest ones.

    **Arguments:**

    - `what`: what was being named, such as `"environment"`.
    - `name`: the name that was not found.
    - `names`: every name that would have been understood.

    **Returns:**

    The error, for the caller to raise.
    """
    names = sorted(names)
    folded = {candidate.casefold(): candidate for candidate in names}
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    if near:
        hint = f"did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    elif not names:
        hint = "there is none."
    else:
        hint = f"there are {', '.join(repr(candidate) for candidate in names)}."
    return InputError(f"no {what} is called {name!r}: {hint}")
