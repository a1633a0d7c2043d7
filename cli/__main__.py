"""`python -m gorl_cli`."""

from ._app import main

main()
