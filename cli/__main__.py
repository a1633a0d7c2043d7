"""`gorl`, and `python -m gorl_cli`."""

import io
import sys

from ._process import stop_at_once


def main() -> None:
    """Runs the command line. A signal stops it from here on, since its imports take seconds."""
    stop_at_once()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a run
    from ._app import main as run

    run()


if __name__ == "__main__":
    main()
