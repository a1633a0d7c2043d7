"""The command line: it parses, calls gorl and shows. Installed as `gorl_cli`, a name that nothing else has.

Bad input is a `gorl.InputError` everywhere: one sentence with the fix, before anything is compiled or written.
"""
