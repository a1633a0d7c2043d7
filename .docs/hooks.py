"""Adds the reference, which is made of docstrings alone, to the guides."""

import pathlib

from mkdocs.structure.files import File

API = pathlib.Path(__file__).with_name("api.md")


def on_files(files, config):
    files.append(File.generated(config, "api.md", content=API.read_text()))
    return files
