"""The error for bad input, and the hint at the nearest names of a misspelt one."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one sentence that says how to fix it."""


class DamagedFileError(InputError):
    """A file is not what was written to it. Another copy of it may help."""


def unknown_name(what: str, name: str, names: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not one of `names`, with the nearest ones.

    **Arguments:**

    - `what`: the kind of name, such as `"environment"`.
    - `name`: the name that was not found.
    - `names`: every valid name.

    **Returns:**

    The error, for the caller to raise.
    """
    names = sorted(names)
    folded = {candidate.casefold(): candidate for candidate in names}
    longer = [candidate for candidate in folded if name and candidate.startswith(name.casefold())][:3]
    close = longer or difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    near = [folded[match] for match in close]
    if near:
        hint = f"did you mean {' or '.join(repr(candidate) for candidate in near)}?"
    elif not names:
        hint = "there is none."
    else:
        hint = f"there are {', '.join(repr(candidate) for candidate in names)}."
    return InputError(f"no {what} is called {name!r}: {hint}")
