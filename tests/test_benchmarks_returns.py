"""The benchmark of returns, with a stand-in for `gorl train` that takes no time."""

import json
import sys
import textwrap
import time

import numpy as np
import pytest
import scipy.stats

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
    return returns.Cell("laptop", "PointMass", method, seeds, directory)


def test_a_finished_cell_leaves_its_curve_and_its_config(stand_in, tmp_path):
    one = cell(tmp_path / "results")
    assert not one.is_finished()
    assert one.run(float("inf"))
    assert one.is_finished()
    steps, scores = one.curve()
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_array_equal(scores, [[0, 10], [100, 110]])
    assert one.summary()["config"] == json.loads(gorl.preset("PointMass", method="ppo").to_json())


def test_a_cell_of_fewer_seeds_or_another_config_is_not_finished(stand_in, tmp_path):
    assert cell(tmp_path / "results").run(float("inf"))
    assert cell(tmp_path / "results", seeds=1).is_finished()
    assert not cell(tmp_path / "results", seeds=3).is_finished()
    assert not cell(tmp_path / "results", method="fpo").is_finished()
    changed = cell(tmp_path / "results")
    changed.config = gorl.replace(changed.config, {"learner.clip_epsilon": 0.3})
    assert not changed.is_finished()


def test_a_cell_stays_finished_when_a_setting_is_added_and_not_when_one_is_gone(stand_in, tmp_path):
    one = cell(tmp_path / "results")
    assert one.run(float("inf"))
    summary = one.summary()
    del summary["config"]["learner"]["learning_rate_decay"]
    one.summary_file.write_text(json.dumps(summary))
    assert one.is_finished()
    summary["config"]["learner"]["a_setting_of_old"] = 1.0
    one.summary_file.write_text(json.dumps(summary))
    assert not one.is_finished()


def test_finished_cells_are_not_run_again(stand_in, tmp_path, capsys):
    options = {"tasks": ["PointMass"], "methods": ["ppo", "fpo"], "seeds": 2, "out": tmp_path / "results"}
    assert cell(tmp_path / "results" / "laptop").run(float("inf"))
    before = (tmp_path / "results" / "laptop" / "PointMass_ppo.json").stat().st_mtime_ns
    returns.main(**options, scale="laptop", minutes=float("inf"), show=False)
    assert (tmp_path / "results" / "laptop" / "PointMass_ppo.json").stat().st_mtime_ns == before
    assert (tmp_path / "results" / "laptop" / "PointMass_fpo.json").exists()
    assert (tmp_path / "results" / "laptop" / "returns.png").stat().st_size > 1000
    assert "not finished" not in capsys.readouterr().out


def test_a_cell_that_runs_out_of_time_leaves_nothing(stand_in, tmp_path, capsys):
    stand_in("import time\ntime.sleep(60)\n")
    one = cell(tmp_path / "results")
    assert not one.run(time.monotonic() + 0.5)
    assert not (tmp_path / "results").exists()
    returns.main(["PointMass"], ["ppo"], 2, "laptop", 0.0, tmp_path / "results", False)
    assert "not finished: ppo on PointMass" in capsys.readouterr().out


def test_the_table_of_the_readme_leaves_out_what_was_not_run(stand_in, tmp_path):
    cells = [cell(tmp_path), returns.Cell("laptop", "ReacherEasy", "fpo", 2, tmp_path)]
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


def test_the_interquartile_mean_leaves_out_both_quarters():
    scores = np.random.default_rng(0).normal(size=(8, 3))
    middle, (low, high) = returns.interquartile_means(scores)
    np.testing.assert_allclose(middle, scipy.stats.trim_mean(scores, 0.25, axis=0))
    assert (low <= middle).all()
    assert (middle <= high).all()


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
    one = returns.Cell("paper", task, method, 1, tmp_path)
    assert returns.paper_return(one, steps) == reported
