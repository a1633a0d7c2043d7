"""The command line: parse, call gorl, show. Installed as `gorl_cli`, a name that collides with nothing."""
