"""The tour runs from top to bottom, as the script and as the notebook that it is."""

import importlib.util
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image, ImageSequence
from quick import quick_environment

import gorl

ROOT = pathlib.Path(__file__).parent.parent
TOUR = ROOT / "gorl/guides/tour.py"
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
PICTURES = {"curve.png", "actions.png", "comparison.png", "swing.png"}
MISSING = [name for name in ("jupytext", "nbclient", "ipykernel") if importlib.util.find_spec(name) is None]


def cells():
    """The cells of the tour: the text of each, and whether it is prose."""
    _, *found = re.split(r"^# %%", TOUR.read_text(), flags=re.MULTILINE)
    for cell in found:
        head, _, text = cell.partition("\n")
        is_prose = head.strip() == "[markdown]"
        yield (re.sub(r"^# ?", "", text, flags=re.MULTILINE) if is_prose else text), is_prose


@pytest.fixture
def short(tmp_path):
    """A copy of the tour whose runs are short, in a directory of its own."""
    text, count = re.subn(r"^STEPS = [\d_]+", "STEPS = 20_000", TOUR.read_text(), flags=re.MULTILINE)
    assert count == 1
    path = tmp_path / "tour.py"
    path.write_text(text)
    return path


def test_the_script_runs_without_a_display(short):
    environment = quick_environment(MPLBACKEND="agg", PYTHONPATH=PATH)
    environment.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", short.name],
        cwd=short.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = short.parent / "tour"
    assert {path.name for path in made.glob("*.png")} - {"film.png"} == PICTURES
    for name in PICTURES:
        assert np.asarray(Image.open(made / name).convert("L")).std() > 10  # something is drawn
    assert gorl.load_policy(made / "policy.eqx").mode(np.zeros(2, np.float32)).shape == (2,)
    for name in ("gorl-flow", "ppo"):
        mean, low, high = map(
            float, re.search(rf"^{name}: (\S+) \[(\S+), (\S+)\]$", done.stdout, re.MULTILINE).groups()
        )
        assert low <= mean <= high
    if (made / "film.gif").exists():
        with Image.open(made / "film.gif") as film:  # equal frames in a row are one, which stays for longer
            milliseconds = sum(frame.info["duration"] for frame in ImageSequence.Iterator(film))
        assert milliseconds == 51 * 100  # the start, and each of fifty steps, at ten a second
    else:
        assert "MuJoCo" in done.stdout
    # Each of the three runs has its bar, which comes to its end.
    percent = [*map(int, re.findall(r"(\d+)%\|", done.stderr)), 0]
    assert sum(now == 100 > following for now, following in itertools.pairwise(percent)) == 3, done.stderr
    assert len(re.findall(r"return -?\d+\.\d\]", done.stderr)) >= 3


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_notebook_runs_and_shows_its_pictures(short):
    import jupytext
    import nbclient

    notebook = jupytext.read(short)
    assert [cell.cell_type == "markdown" for cell in notebook.cells] == [is_prose for _, is_prose in cells()]
    environment = quick_environment(PYTHONPATH=PATH)
    environment.pop("MPLBACKEND", None)  # a notebook shows its figures by a backend of its own
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(short.parent)}})
    client.create_kernel_manager()
    client.execute(env=environment)  # a cell that fails raises
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    has_film = (short.parent / "tour/film.gif").exists()
    assert len(shown) == len(PICTURES) + has_film
    assert any("gorl-flow: " in output.get("text", "") for output in outputs)


def test_the_prose_leads_somewhere():
    prose = "\n".join(text for text, is_prose in cells() if is_prose)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert len(targets) > 4
    for target in targets:
        assert (TOUR.parent / target).exists(), target
    for name in re.findall(r"\bgorl\.([A-Za-z_]\w+)", prose):
        assert hasattr(gorl, name), f"gorl.{name}"


def test_the_commands_of_the_tour_are_there():
    prose = "\n".join(text for text, is_prose in cells() if is_prose)
    (block,) = re.findall(r"```bash\n(.*?)```", prose, re.DOTALL)
    install, convert = (shlex.split(line) for line in block.splitlines())
    assert install == ["pip", "install", "gorl[tour]"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith(convert[0]) for requirement in extras["tour"])
    assert convert == ["jupytext", "--to", "notebook", TOUR.name]
    from gorl_cli._app import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    mentioned = re.findall(r"`gorl (\w+)", prose)
    assert len(mentioned) > 3
    assert set(mentioned) <= names
