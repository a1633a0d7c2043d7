"""Writing while a command goes on: into the directory that it began in, and no other."""

import dataclasses
import errno
import pathlib
from collections.abc import Callable

from ._say import say

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
}


class GoneError(Exception):
    """A directory does not hold any more what a command writes there."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The directory that a command writes to as it goes on.

    **Arguments:**

    - `mark`: a file in the directory, which says whose it is.
    - `identifier`: what that file has in it.
    """

    mark: pathlib.Path
    identifier: str

    def check(self) -> None:
        """Checks that the directory has not been moved, deleted or replaced.

        **Raises:**

        `GoneError` if it has.
        """
        try:
            found = self.mark.read_text()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise GoneError from error
        except OSError:
            return  # nothing is known: whether writing works says more
        if self.identifier not in found:
            raise GoneError

    def try_to_write(self, what: str, write: Callable[[], object], then: str) -> bool:
        """Writes, and says so if that fails.

        **Arguments:**

        - `what`: what is not written then, such as "no checkpoint".
        - `write`: writes it.
        - `then`: what follows from that.

        **Returns:**

        Whether it was written.

        **Raises:**

        `GoneError` if the directory has been moved, deleted or replaced; then nothing is written.
        """
        self.check()
        try:
            write()
        except OSError as error:
            self.check()
            say(f"{what} could be written ({error.strerror}): {then}")
            return False
        return True


def advice(error: OSError) -> str:
    """What can be done where something could not be written."""
    return _ADVICE.get(error.errno or 0, "see to that")
