"""What the benchmarks share: bad input has one answer, and what is left says where it was measured."""

import ast
import importlib.metadata
import json
import pathlib
import re
import sys
import tomllib

import answering
import pytest

import gorl
from benchmarks import _report, costs, gpu, peers, physics, returns, solvers, throughput

ROOT = pathlib.Path(__file__).parent.parent
APPS = {app.info.name: app for app in (module.app for module in (gpu, peers, physics, returns, solvers, throughput))}
BAD = {
    "gpu": ["--no-such-option", "--minutes -1", "--implementation bullet"],
    "peers": [
        *("--task PointMas", "--iterations 2", "--repeats 0", "--repeats two", "--set learner.num_envs=ten"),
        *("--set stage_steps=100", "--set learner.num_envs", "--set learner.num_minibatches=7"),
    ],
    "physics": ["--task PointMas", "--num-envs 0", "--repeats 0", "--no-such-option"],
    "returns": ["--task PointMas", "--method ppp", "--scale desktop", "--seeds 0", "--no-such-option"],
    "solvers": ["--task PointMas", "--solver Eular", "--steps many", "--steps 5", "--pairs 0", "--run nowhere"],
    "throughput": [
        *("--task PointMass --task PointMas", "--scale desktop", "--no-such-option"),
        *("--set learner.num_envs", "--set learner.num_env=3", "--set learner.num_envs=-3"),
    ],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_bad_input_gets_one_sentence_and_exit_code_2_before_anything_is_compiled(name, text, tmp_path, compilations):
    code, out, err = answering.run(APPS[name], *text.split(), "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"benchmarks\.{name}: [^\n]+\n", err)
    assert not (tmp_path / "out").exists()
    assert not compilations


@pytest.mark.parametrize("command", ["start", "decoder", "seeds", "stages", "memory"])
@pytest.mark.parametrize("arguments", [["--task", "PointMas"], ["--no-such-option"]])
def test_bad_input_of_a_command_of_the_costs_too(command, arguments, tmp_path, compilations):
    code, out, err = answering.run(costs.app, command, *arguments, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("benchmarks.costs: ")
    assert not (tmp_path / "out").exists()
    assert not compilations


def test_settings_are_those_of_the_fields(tiny):
    values = _report.parse_settings(tiny, ["learner.num_envs=32", "stage_steps = 640,320"])
    assert values == {"learner.num_envs": 32, "stage_steps": (640, 320)}
    assert _report.parse_settings(tiny, None) == {}
    with pytest.raises(gorl.InputError, match="sets nothing: write it as FIELD=VALUE"):
        _report.parse_settings(tiny, ["learner.num_envs"])
    with pytest.raises(gorl.InputError, match=r"did you mean 'learner.num_envs'"):
        _report.parse_settings(tiny, ["learner.num_env=3"], ["learner.num_envs"])


def test_what_is_left_says_where_it_was_measured_and_with_what(tmp_path):
    _report.write(tmp_path / "some" / "file.json", {"seconds": [1.0]})
    content = json.loads((tmp_path / "some" / "file.json").read_text())
    assert content["seconds"] == [1.0]
    assert content["cores"] == gorl.internal.num_cores()
    assert content["gorl"] == gorl.__version__
    assert {"machine", "device", "devices", "python", "jax", "mujoco", "playground"} <= set(content)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("Euler", "Euler"),
        (True, "yes"),
        (False, "NO"),
        (1_234_567, "1,234,567"),
        (1234.5, "1,234"),
        (112.4, "112"),
        (4.0, "4.00"),
        (0.04817, "0.0482"),
        (float("nan"), "nan"),
    ],
)
def test_tables_show_few_digits(value, text):
    assert _report.in_few_digits(value) == text


def test_a_table_has_a_column_for_each_key_and_gaps_where_a_row_has_none(capsys):
    _report.table("title", [{"name": "one", "s": 1.5}, {"name": "two", "ratio": 2.0}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "title"
    assert [re.findall(r"\w[\w.]*", line) for line in lines if "one" in line or "two" in line] == [
        ["one", "1.50"],
        ["two", "2.00"],
    ]


def test_every_benchmark_has_a_test_of_its_name():
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert (ROOT / "tests" / f"test_benchmarks_{path.stem}.py").exists()


def test_the_benchmarks_import_nothing_but_what_the_library_declares():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    distributions = importlib.metadata.packages_distributions()
    allowed = {re.split(r"[^\w-]", text)[0].lower() for text in declared} | {"envpool"}  # which is asked for by name
    for path in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                of = {one.lower() for one in distributions.get(name, [name])}
                assert name in sys.stdlib_module_names or name == "gorl" or of & allowed, f"{path} imports {name}"


def test_ctrl_c_ends_a_benchmark_without_a_traceback():
    app = _report.benchmark("endless")

    @app.command()
    def main():
        raise KeyboardInterrupt

    assert answering.run(app) == (130, "", "")
