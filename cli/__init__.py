"""The command line: it parses, calls gorl and shows. Installed as `gorl_cli`, a name that nothing else has."""
