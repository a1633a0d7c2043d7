"""What the guides and the README show has to work: examples, commands, links and names."""

import ast
import dataclasses
import importlib
import pathlib
import re
import shlex
import sys
import tomllib

import click
import pytest
import typer

import gorl

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = sorted((ROOT / "gorl/guides").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *GUIDES, *sorted((ROOT / ".github").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What is trained in an example is trained with these sizes, where the config has them.
# What comes after a group's name and is no field of the library: methods, and fields that examples declare.
NO_FIELDS = {"decode", "encoder", "init", "mode", "observation_size", "sample", "step", "update"}
NO_FIELDS |= {"divergence_coefficient", "num_layers"}
QUICK = ("MultiGoal", "PointMass", "my_env:Swing")
SMALL = {
    "env.episode_length": 20,
    "env.training_length": None,
    "learner.num_envs": 8,
    "learner.unroll_length": 5,
    "learner.num_unrolls": 1,
    "learner.num_minibatches": 2,
    "learner.num_epochs": 1,
    "learner.policy_width": 8,
    "learner.policy_depth": 1,
    "learner.value_width": 8,
    "learner.value_depth": 1,
    "decoder.width": 8,
    "decoder.depth": 1,
    "decoder.num_steps": 2,
    "refinement.num_episodes": 4,
    "refinement.num_validation_episodes": 1,
    "refinement.num_noise_samples": 1,
    "refinement.batch_size": 10,
    "refinement.num_epochs": 1,
    "refinement.stride": 1,
    "stage_steps": (80, 80),
    "evaluation_interval": 80,
    "evaluation_episodes": 2,
}


def documents(pattern):
    """The documents in which a pattern occurs."""
    return [pytest.param(path, id=path.name) for path in DOCUMENTS if re.search(pattern, path.read_text())]


def blocks(path, language):
    """The code of a language in a document: each block with the name of the file that it is to be saved as, if any."""
    found = re.findall(rf"(?:<!-- ([^>]*) -->\n)?```{language}\n(.*?)```", path.read_text(), re.DOTALL)
    return [(marker.removeprefix("file: ") if marker.startswith("file: ") else marker, code) for marker, code in found]


@pytest.fixture
def small_presets(monkeypatch):
    """Lets `gorl.preset` give configs of a tiny budget."""
    preset = gorl.preset

    def small(*arguments, **keywords):
        config = preset(*arguments, **keywords)
        if config.env.name not in QUICK:
            return config  # it is only looked at
        has = {
            name: value
            for name, value in SMALL.items()
            if "." not in name or hasattr(getattr(config, name.split(".")[0]), name.split(".")[1])
        }
        if config.num_stages == 1:
            has["stage_steps"] = (80,)
        return gorl.replace(config, has)

    monkeypatch.setattr(gorl, "preset", small)


@pytest.mark.parametrize("path", documents("```python"))
def test_every_python_example_runs(path, small_presets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for marker, code in blocks(path, "python"):
        if marker == "export example":
            continue  # in a process of its own, see test_readme.py
        if marker:
            (tmp_path / marker).write_text(code)
            importlib.invalidate_caches()
            sys.modules.pop(pathlib.Path(marker).stem, None)
        else:
            exec(compile(code, f"{path.name}", "exec"), names)


def commands(path):
    """The shell commands that a document shows, one a line, without their comments."""
    lines = [line for _, code in blocks(path, "bash") for line in code.splitlines()]
    inline = re.findall(r"`((?:JAX\w+=\S+ )?(?:gorl [a-z-]+|python -m benchmarks)\b[^`]*)`", path.read_text())
    pieces = [piece for line in [*lines, *inline] for piece in re.split(r" && |\n", line.replace("\n", " "))]
    return [words for piece in pieces if (words := shlex.split(piece, comments=True))]


@pytest.mark.parametrize("path", documents("```bash|`gorl "))
def test_every_command_is_one_that_there_is(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for other in GUIDES:  # the files that examples are saved as
        for marker, code in blocks(other, "python"):
            if marker.endswith(".py"):
                (tmp_path / marker).write_text(code)
    for words in commands(path):
        while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            words = words[1:]
        check_command([pathlib.PurePath(words[0]).name, *words[1:]])


def check_command(words):
    from gorl_cli._app import app

    match words:
        case ["gorl", *arguments]:
            check_options(app, arguments)
        case [("python" | "python3"), "-m", module, *arguments] if module.startswith("benchmarks."):
            check_options(importlib.import_module(module), arguments)
        case ["pip", "install", "pre-commit"]:
            pass
        case ["pip", "install", "-e", what]:
            assert set(what.removeprefix(".").strip("[]").split(",")) - {""} <= set(
                PROJECT["project"]["optional-dependencies"]
            )
        case [("python" | "python3"), "-m", ("venv" | "pytest"), *_] | [
            ("mkdocs" | "ruff" | "pyright" | "pre-commit"),
            *_,
        ]:
            pass
        case [(".ci/run" | "run"), *_]:
            assert (ROOT / ".ci/run").exists()
        case _:
            pytest.fail(f"nobody checks {shlex.join(words)}")


def check_options(app, arguments):
    """Parses the arguments as the program would, and the fields that `--set` names, and runs nothing."""
    if not isinstance(app, typer.Typer):
        module, app = app, getattr(app, "app", None)
        if app is None:
            app = typer.Typer()
            app.command()(module.main)
    command = typer.main.get_command(app)
    context = command.make_context("program", list(arguments), resilient_parsing=False)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, context._protected_args + context.args)
        context = command.make_context(name, rest, parent=context)
    values = context.params
    if "method" in values and "env" in values:
        config = gorl.preset(values["env"], values["scale"], values["method"])
        for setting in values.get("set_") or []:
            name, _, text = setting.partition("=")
            for value in text.split(","):
                gorl.replace(config, {name: gorl.internal.parse(config, name, value)})


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_every_link_leads_somewhere(path):
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target
        if path in GUIDES:
            assert to in GUIDES, f"{target} is not in the package"


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in DOCUMENTS if path.name != "CHANGELOG.md"]
)
def test_every_file_and_name_that_is_mentioned_is_there(path):
    for name in re.findall(r"`((?:gorl|cli|benchmarks|tests|\.github|\.ci|\.docs)/[\w./+-]*)`", path.read_text()):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(_\w+(?:/_\w+)?(?:\.py|/))`", path.read_text()):
        assert (ROOT / "gorl" / name).exists(), name
    for name in re.findall(r"\bgorl\.([A-Za-z_]\w+)", path.read_text()):
        assert hasattr(gorl, name), f"gorl.{name}"
    fields = {f"{group}.{field}" for group in ("env", "decoder", "refinement") for field in every_field(group)}
    fields |= {f"learner.{field}" for field in every_field("learner")}
    for name in re.findall(r"\b((?:learner|decoder|refinement|env)\.[a-z]\w+)\b", path.read_text()):
        assert name in fields or name.split(".")[1] in NO_FIELDS, name


def every_field(group):
    """The fields that a group of a config can have, whatever its class."""
    kinds = {
        "env": [gorl.EnvConfig],
        "learner": [gorl.PPO, gorl.FPO, gorl.DPPO, gorl.SAC, gorl.REPPO],
        "decoder": [gorl.FlowMatching, gorl.Diffusion, gorl.Gaussian],
        "refinement": [gorl.Refinement],
    }
    return {field.name for kind in kinds[group] for field in dataclasses.fields(kind)}


def test_the_guides_are_in_the_package():
    assert "guides/*.md" in PROJECT["tool"]["setuptools"]["package-data"]["gorl"]
    (index,) = [path for path in GUIDES if path.name == "README.md"]
    linked = set(re.findall(r"\]\((\w+\.md)\)", index.read_text()))
    assert linked == {path.name for path in GUIDES} - {"README.md"}


def test_the_reference_has_every_public_name():
    imports = [
        node for node in ast.parse((ROOT / "gorl/__init__.py").read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    public = {alias.asname for node in imports for alias in node.names if alias.asname} - {"internal"}
    assert set(re.findall(r"^::: gorl\.(\w+)$", (ROOT / ".docs/api.md").read_text(), re.MULTILINE)) == public
