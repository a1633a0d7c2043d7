"""`gorl`, and `python -m gorl_cli`."""

import io
import sys

from ._stop import stop_at_once


def main() -> None:
    """Runs the command line, which can be stopped from here on: what it imports takes its time."""
    stop_at_once()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # no run fails for a name that its terminal cannot show
    from ._app import main as run

    run()


if __name__ == "__main__":
    main()
