"""What is imported is declared: the library and the command line in an environment that has nothing else."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement
from quick import quick_environment

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"gorl", "gorl_cli"}

# An import of what is not declared fails as it does where that is not installed; the search for it finds nothing.
WITHOUT = """
import importlib.machinery, sys

hidden = set(sys.argv.pop(1).split(","))

class Declared(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path = [Declared if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
assert hidden
"""


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def modules():
    """The distributions that each installed module is of."""
    found = importlib.metadata.packages_distributions()
    return {module: {normalised(name) for name in names} for module, names in found.items()}


def needed(*requirements):
    """All distributions that come with these."""
    found, left = {}, [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name, extras = normalised(requirement.name), {"", *requirement.extras}
        if extras <= found.setdefault(name, set()):
            continue
        found[name] |= extras
        try:
            inner = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        left += [
            other
            for other in inner
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return set(found)


def run_with(distributions, program, *arguments, **options):
    """Runs a Python program where only these distributions are installed."""
    hidden = {name for name, of in modules().items() if not of & distributions and name not in OWN}
    command = [sys.executable, "-c", WITHOUT + program, ",".join(hidden), *map(str, arguments)]
    return subprocess.run(command, env=quick_environment(), capture_output=True, text=True, **options)


def imported(path):
    """The modules that a file imports, by their first names, and whether that is where the file itself is imported."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        else:
            continue
        yield from ((name.partition(".")[0], node in tree.body) for name in names)


@pytest.mark.parametrize("folder", ["gorl", "cli"])
def test_what_is_imported_is_declared(folder):
    declared = {normalised(Requirement(text).name) for text in PROJECT["dependencies"]}
    optional = {
        normalised(Requirement(text).name)
        for extra in ("tensorboard", "wandb", "video", "onnx", "report", "tune", "minari", "tour", "view")
        for text in PROJECT["optional-dependencies"][extra]
    }
    for path in (ROOT / folder).rglob("*.py"):
        for name, at_once in imported(path):
            if name in OWN or name in sys.stdlib_module_names:
                continue
            # The module that is about ONNX and the tour are imported by nothing at once.
            allowed = declared if at_once and path.name not in ("_onnx.py", "tour.py") else declared | optional
            assert modules().get(name, set()) & allowed, f"{path} imports {name}, which pyproject.toml does not declare"


COMMANDS = """
import os, pathlib, pkgutil, sys
import gorl, gorl_cli
from gorl_cli._app import main

for package in (gorl, gorl_cli):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in ("gorl._onnx", "gorl_cli.__main__"):  # the one is for those who have onnx
            __import__(module.name)
for name in ("PointMass", "brax/inverted_pendulum", "MultiGoal"):
    gorl.load_environment(gorl.EnvConfig(name))

def run(*arguments):
    sys.argv = ["gorl", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0

run_directory = sys.argv[1]
for arguments in (
    ("export", run_directory, "-o", "policy"),
    ("plot", run_directory, "-o", "curves.png"),
    ("eval", run_directory, "--episodes", "2"),
):
    assert run(*arguments) == 0, arguments
assert run("export", run_directory, "-o", "policy.onnx") == 2
assert run("report", run_directory) == 2
assert run("view", run_directory) == 2
"""

CALL = """
import jax.export, numpy

program = jax.export.deserialize(open("policy.stablehlo", "rb").read())
observation = numpy.load("observation.npy")
numpy.save("action.npy", program.call(observation, numpy.zeros((len(observation), 2), numpy.float32)))
"""


def test_the_commands_work_with_what_is_declared_and_jax_and_flatbuffers_run_what_is_exported(finished_run, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished_run.directory, directory)
    done = run_with(needed(*PROJECT["dependencies"]), COMMANDS, directory, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "policy.stablehlo", "run"]
    assert "policy.onnx is left out" in done.stderr
    assert done.stderr.count("pip install 'gorl[onnx]'") == 2
    assert done.stderr.count("pip install 'gorl[report]'") == 1
    assert "Traceback" not in done.stderr

    observation = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.save(tmp_path / "observation.npy", observation)
    called = run_with(needed("jax", "flatbuffers"), CALL, cwd=tmp_path)
    assert called.returncode == 0, called.stderr
    policy = finished_run.policy(None)
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), jax.vmap(policy.mode)(observation), rtol=0, atol=1e-5)


def test_every_package_is_shipped():
    # An editable install finds them all; a wheel has those that are listed.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    there = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "gorl").rglob("__init__.py")}
    assert {*project["tool"]["setuptools"]["packages"]} == there | {"gorl_cli"}
