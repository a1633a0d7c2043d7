"""The benchmark of returns, with a stand-in for `gorl train` that takes no time."""

import json
import shutil
import sys
import textwrap
import time

import answering
import numpy as np
import pytest

import gorl
from benchmarks import returns

STAND_IN = """
    import json, pathlib, sys, gorl
    task, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
    directory = pathlib.Path(options["--out"])
    directory.mkdir()
    config = gorl.preset(task, options["--scale"], options["--method"])
    (directory / "config.json").write_text(config.to_json())
    (directory / "summary.json").write_text(json.dumps({"best_policy_return": {"0": 1.0}, "wall_seconds": 60.0}))
    rows = [f"{seed},{steps},{100 * seed + steps}" for seed in range(int(options["--seeds"])) for steps in (0, 10)]
    (directory / "curve.csv").write_text("\\n".join(["seed,env_steps,return_mean", *rows]))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a script in the place of `gorl train`."""

    def put(source=STAND_IN):
        script = tmp_path / "train.py"
        script.write_text(textwrap.dedent(source))
        monkeypatch.setattr(returns, "TRAIN", (sys.executable, str(script)))

    put()
    return put


def cell(directory, seeds=2, method="ppo"):
    return returns.Cell("laptop", "PointMass", method, 0, seeds, directory)


def test_a_finished_cell_leaves_its_curve_and_its_config(stand_in, tmp_path):
    one = cell(tmp_path / "results")
    assert not one.is_finished
    assert one.run(float("inf"))
    assert one.is_finished
    steps, scores = one.curve()
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_array_equal(scores, [[0, 10], [100, 110]])
    assert one.summary()["config"] == json.loads(gorl.preset("PointMass", method="ppo").to_json())
    assert one.summary()["cores"] == gorl.internal.num_cores()  # and all else that says where it was measured


def test_the_first_seed_is_the_one_that_was_asked_for(stand_in, tmp_path):
    stand_in(f"import sys\nassert sys.argv[sys.argv.index('--seed') + 1] == '7'\n{textwrap.dedent(STAND_IN)}")
    results = ("--out", tmp_path / "results")
    assert answering.run(returns.app, "--method", "ppo", "--seed", 7, "--seeds", 2, *results)[0] == 0
    with pytest.raises(SystemExit, match="exit code 1"):
        cell(tmp_path / "others").run(float("inf"))


def test_a_cell_of_fewer_seeds_or_another_config_is_not_finished(stand_in, tmp_path):
    assert cell(tmp_path / "results").run(float("inf"))
    assert cell(tmp_path / "results", seeds=1).is_finished
    assert not cell(tmp_path / "results", seeds=3).is_finished
    assert not cell(tmp_path / "results", method="fpo").is_finished
    changed = cell(tmp_path / "results")
    changed.config = gorl.replace(changed.config, {"learner.clip_epsilon": 0.3})
    assert not changed.is_finished


def test_a_cell_stays_finished_when_a_setting_is_added_and_not_when_one_is_gone(stand_in, tmp_path):
    one = cell(tmp_path / "results")
    assert one.run(float("inf"))
    summary = one.summary()
    del summary["config"]["learner"]["learning_rate_decay"]
    one.summary_file.write_text(json.dumps(summary))
    assert one.is_finished
    summary["config"]["learner"]["a_setting_of_old"] = 1.0
    one.summary_file.write_text(json.dumps(summary))
    assert not one.is_finished


def test_finished_cells_are_not_run_again(stand_in, tmp_path):
    results = tmp_path / "results"
    assert cell(results / "laptop").run(float("inf"))
    before = (results / "laptop" / "PointMass_ppo.json").stat().st_mtime_ns
    arguments = ("--task", "PointMass", "--method", "ppo", "--method", "fpo", "--seeds", 2, "--out", results)
    code, out, _ = answering.run(returns.app, *arguments)
    assert code == 0
    assert (results / "laptop" / "PointMass_ppo.json").stat().st_mtime_ns == before
    assert (results / "laptop" / "PointMass_fpo.json").exists()
    assert (results / "laptop" / "returns.png").stat().st_size > 1000
    assert "not finished" not in out
    assert "last (smallest and largest)" in out


def test_a_cell_that_runs_out_of_time_leaves_nothing(stand_in, tmp_path):
    stand_in("import time\ntime.sleep(60)\n")
    one = cell(tmp_path / "results")
    assert not one.run(time.monotonic() + 0.5)
    assert not (tmp_path / "results").exists()
    arguments = ("--method", "ppo", "--minutes", 0, "--out", tmp_path / "results")
    assert "not finished: ppo on PointMass" in answering.run(returns.app, *arguments)[1]


def test_the_committed_results_are_shown_whatever_their_config(tmp_path):
    shutil.copytree(returns.RESULTS / "laptop", tmp_path / "laptop")
    arguments = ("--task", "PointMass", "--method", "gorl-flow", "--show", "--out", tmp_path)
    code, out, _ = answering.run(returns.app, *arguments)
    assert code == 0
    assert "901.4 [897.0, 905.0]" in out
    code, out, _ = answering.run(returns.app, *arguments, "--markdown")
    assert (code, out.splitlines()[2]) == (0, "| `gorl-flow` | 901.4 [897.0, 905.0] |")


def test_the_table_of_the_readme_leaves_out_what_was_not_run(stand_in, tmp_path):
    cells = [cell(tmp_path), returns.Cell("laptop", "ReacherEasy", "fpo", 0, 2, tmp_path)]
    assert all(one.run(float("inf")) for one in cells)
    assert returns.markdown(cells).splitlines() == [
        "| `--method` | PointMass | ReacherEasy |",
        "| --- | --: | --: |",
        "| `ppo` | 60.0 [10.0, 110.0] |  |",
        "| `fpo` |  | 60.0 [10.0, 110.0] |",
    ]


def test_a_run_that_fails_says_so(stand_in, tmp_path):
    stand_in("import sys\nsys.exit(3)\n")
    with pytest.raises(SystemExit, match="exit code 3"):
        cell(tmp_path / "results").run(float("inf"))
    assert not (tmp_path / "results").exists()


def curve_of(directory, returns_at_the_end):
    one = cell(directory)
    rows = [f"{seed},{steps},{value * steps}" for seed, value in enumerate(returns_at_the_end) for steps in (0, 1)]
    one.curve_file.write_text("\n".join(["seed,env_steps,return_mean", *rows]))
    return one


def test_of_few_seeds_the_smallest_and_the_largest_are_shown_and_of_ten_an_interval(tmp_path):
    assert curve_of(tmp_path, [1.0, 2.0, 6.0]).last() == "3.0 [1.0, 6.0]"
    many = np.arange(10.0)
    found = gorl.internal.interval(many)
    assert found.is_confidence
    assert curve_of(tmp_path, many).last() == f"4.5 [{found.low:.1f}, {found.high:.1f}]"


def test_seeds_that_diverged_are_left_out_and_counted(tmp_path):
    assert curve_of(tmp_path, [1.0, float("nan"), 6.0]).last() == "3.5 [1.0, 6.0] (1 of 3 seeds diverged)"


@pytest.mark.parametrize(
    ("task", "method", "steps", "reported"),
    [
        ("CheetahRun", "gorl-flow", 180_355_200, "883.40"),
        ("CheetahRun", "ppo", 60_000_000, "539"),
        ("CheetahRun", "ppo", 5_000_000, ""),
        ("PointMass", "ppo", 60_000_000, ""),
        ("HumanoidStand", "ppo", 60_000_000, ""),
    ],
)
def test_the_papers_return_where_task_and_budget_match(tmp_path, task, method, steps, reported):
    one = returns.Cell("paper", task, method, 0, 1, tmp_path)
    assert one.paper_return(steps) == reported
