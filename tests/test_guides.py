"""What the guides and the README show has to work: examples, commands, links and names."""

import ast
import csv
import dataclasses
import importlib
import pathlib
import re
import shlex
import sys
import tomllib

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import typer
import typer.core

import gorl

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = sorted((ROOT / "gorl/guides").glob("*.md"))
TOUR = ROOT / "gorl/guides/tour.py"
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


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory for examples: what they import from it, or register, is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gorl._method, "_METHODS", gorl.methods())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def save_files(path, directory):
    """Saves the examples of a document that are to be saved as files."""
    for marker, code in blocks(path, "python"):
        if marker.endswith(".py"):
            (directory / marker).write_text(code)
    importlib.invalidate_caches()


def check_learner(names):
    config, result = names["config"], names["result"]
    assert gorl.Config.from_json(config.to_json()) == config
    assert gorl.methods()["gorl-prior"].learner == type(config.learner)()
    assert np.isfinite(result.curve.mean_return).all()
    assert result.curve.metrics["divergence"][-1] > 0


def check_decoder(names):
    assert np.isfinite(names["result"].fits.validation_loss).all()
    decoder = names["Coupling"](width=8, num_layers=3).init(gorl.RunningStatistics.empty(4), 3, jax.random.key(0))
    flat, restore = jax.flatten_util.ravel_pytree(decoder.networks)
    networks = restore(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))
    decoder = eqx.tree_at(lambda decoder: decoder.networks, decoder, networks)
    observation, latent = jax.random.normal(jax.random.key(2), (4,)), jnp.array([0.3, -1.2, 0.7])
    action = decoder.decode(observation, latent)
    slope = jax.jacobian(lambda latent: decoder.decode(observation, latent))(latent)
    log_density = scipy.stats.norm.logpdf(latent).sum() - np.linalg.slogdet(np.asarray(slope)).logabsdet
    loss = decoder.loss(observation, jnp.zeros(3), action, jax.random.key(3))
    np.testing.assert_allclose(-3 * loss, log_density, rtol=1e-4)
    assert abs(np.linalg.slogdet(np.asarray(slope)).logabsdet) > 0.05
    with pytest.raises(gorl.InputError, match="two numbers or more"):
        names["Coupling"]().init(gorl.RunningStatistics.empty(4), 1, jax.random.key(0))


CHECKS = {"learners.md": check_learner, "decoders.md": check_decoder}


@pytest.mark.parametrize("path", documents("```python"))
def test_every_python_example_runs(path, small_presets, workplace):
    save_files(path, workplace)
    names = {}
    for marker, code in blocks(path, "python"):
        if not marker:  # the others are files, and the export example, which test_readme.py runs without gorl
            exec(compile(code, path.name, "exec"), names)
    CHECKS.get(path.name, lambda names: None)(names)


def commands(path):
    """The shell commands in the blocks of a document, without their comments and what they set in the environment."""
    lines = [line for _, code in blocks(path, "bash") for line in code.splitlines()]
    for piece in [piece for line in lines for piece in line.split(" && ")]:
        words = shlex.split(piece, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            words = words[1:]
        if words:
            yield [pathlib.PurePath(words[0]).name, *words[1:]]


def mentions(path):
    """The commands of gorl that a document mentions in a sentence, which may leave arguments out."""
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return [shlex.split(" ".join(text.split()))[1:] for text in re.findall(r"`(gorl\s[^`]*)`", prose)]


@pytest.mark.parametrize("path", documents("```bash|`gorl "))
def test_every_command_is_one_that_there_is(path, workplace):
    for guide in GUIDES:
        save_files(guide, workplace)
    for words in commands(path):
        check_command(words)
    for words in mentions(path):
        check_names(words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gorl train --speed 3", "--speed"),
        ("gorl fly runs/R", "fly"),
        ("gorl eval", "run"),
        ("gorl train PointMass --set learner.lerning_rate=1", "lerning_rate"),
        ("gorl train PointMass --method gorl-flaw", "gorl-flaw"),
        ("python -m benchmarks.peers --pear rejax", "--pear"),
        ('pip install -e ".[tests]"', "tests"),
        ("make all", "make all"),
    ],
)
def test_a_wrong_command_is_noticed(line, message):
    with pytest.raises(BaseException, match=message):  # the exceptions of click, pytest and gorl have no base in common
        check_command(shlex.split(line))


def check_names(words):
    """Checks the command and the options of a mention."""
    from gorl_cli._app import app

    names = [word for word in words if not word.startswith("-")]
    group = typer.main.get_command(app)
    found = [group, *(group.commands[name] for name in names if name in group.commands)]
    assert len(found) == 2, f"gorl {shlex.join(words)}"
    options = {option for command in found for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options, f"gorl {shlex.join(words)}"


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
    context = command.make_context("program", list(arguments))
    if isinstance(command, typer.core.TyperGroup):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
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
            assert to in [*GUIDES, TOUR], f"{target} is not in the package"


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


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in DOCUMENTS if path.name != "CHANGELOG.md"]
)
def test_no_word_is_one_that_has_gone(path):
    gone = "annealing assess assessment demonstrate entropy_cost latent_cost num_draws num_heldout perceptron smoothing"
    gone += " value_cost workers Chunk SACMemory Workers"
    found = set(gone.split()) & set(re.findall(r"\w+", path.read_text()))
    assert not found


def every_field(group):
    """The fields that a group of a config can have, whatever its class."""
    kinds = {
        "env": [gorl.EnvConfig],
        "learner": [gorl.PPO, gorl.FPO, gorl.DPPO, gorl.SAC, gorl.REPPO],
        "decoder": [gorl.FlowMatching, gorl.Diffusion, gorl.MeanFlow, gorl.Gaussian],
        "refinement": [gorl.Refinement],
    }
    return {field.name for kind in kinds[group] for field in dataclasses.fields(kind)}


def test_the_guides_are_in_the_package():
    assert {"guides/*.md", "guides/*.py"} <= set(PROJECT["tool"]["setuptools"]["package-data"]["gorl"])
    (index,) = [path for path in GUIDES if path.name == "README.md"]
    linked = set(re.findall(r"\]\((\w+\.(?:md|py))\)", index.read_text()))
    assert linked == {path.name for path in [*GUIDES, TOUR]} - {"README.md"}


def test_the_reference_has_every_public_name():
    imports = [
        node for node in ast.parse((ROOT / "gorl/__init__.py").read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    public = {alias.asname for node in imports for alias in node.names if alias.asname} - {"internal"}
    assert set(re.findall(r"^::: gorl\.(\w+)$", (ROOT / ".docs/api.md").read_text(), re.MULTILINE)) == public


def test_the_figures_of_the_quadruped_are_those_of_its_raw_file():
    with (ROOT / "benchmarks/results/robots/quadruped_ppo_seed100.csv").open() as file:
        rows = list(csv.DictReader(file))
    returns = [f"{float(row['return_mean']):.0f}" for row in rows]
    falls = [round(64 * float(row["terminated/fell"])) for row in rows]
    words = " ".join((ROOT / "gorl/guides/robots.md").read_text().split())
    assert f"from {returns[0]} (it stands still) over {returns[2]} after four million steps" in words
    assert f"{returns[4]} after eight to {returns[5]}, of at most 1700" in words
    assert falls[5:] == [0, 1]
    assert "none of 64 episodes ended in a fall, in the one of its best policy 1 of 64" in words
