"""The benchmark of a GPU: what it says without one, and that its smoke run leaves all parts."""

import dataclasses
import json

import answering
import jax
import pytest

import gorl
from benchmarks import gpu


@pytest.fixture(autouse=True)
def _one_step_of_physics(monkeypatch):
    """MultiGoal in the place of PointMass, whose physics takes most of a smoke run to compile."""

    def physics(report, task, implementation, num_envs, num_steps):
        return real(report, "MultiGoal", None, num_envs, num_steps)

    real = gpu.physics
    monkeypatch.setattr(gpu, "physics", physics)


@pytest.fixture
def plan():
    return gpu.smoke_plan()


@pytest.fixture
def report(tmp_path):
    return gpu.Report(tmp_path / "report.json", {})


def on_disk(report):
    return json.loads(report.path.read_text())


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_there_is_a_sentence_and_exit_code_2(tmp_path):
    sentence = "benchmarks.gpu: JAX finds no GPU here: run this where there is one, or give --smoke.\n"
    assert answering.run(gpu.app, "--out", tmp_path) == (2, "", sentence)
    assert not list(tmp_path.iterdir())


def test_a_smoke_run_leaves_all_parts(tmp_path):
    code, out, _ = answering.run(gpu.app, "--smoke", "--out", tmp_path)
    assert code == 0
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert content["finished"]
    assert content["smoke"]
    assert [row["finite"] for row in content["physics"]] == [True]
    one, two = content["seeds"]
    assert (one["seeds"], two["seeds"], one["ratio_to_one_by_one"]) == (1, 2, 1.0)
    assert two["ratio_to_one_by_one"] == pytest.approx(two["iteration_seconds"] / (2 * one["iteration_seconds"]))
    assert two["steps_per_second"] == pytest.approx(2 * 40 / two["iteration_seconds"])
    assert [row["kind"] for row in content["stage"]] == [
        gpu.COMPILING,
        *[gpu.FIRST] * 3,
        gpu.EVALUATION,
        gpu.REFINEMENT,
        gpu.EVALUATION,
        *[gpu.DECODED] * 3,
    ]
    assert content["projection"]["hours"] > 0
    assert content["notes"] == []
    assert "in the whole run" in out


def test_the_projection_is_steps_times_their_medians(report, plan):
    for kind, seconds in [(gpu.FIRST, 1.0), (gpu.FIRST, 3.0), (gpu.EVALUATION, 10.0), (gpu.DECODED, 4.0)]:
        gpu.add_step(report, plan.stage_config, kind, seconds)
    assert on_disk(report)["projection"]["hours"] is None
    assert gpu.add_step(report, plan.stage_config, gpu.REFINEMENT, 100.0) == 1
    # Ten iterations in each stage; evaluations before, amid and after them, and a last one.
    assert on_disk(report)["projection"]["hours"] == pytest.approx((10 * 2 + 10 * 4 + 7 * 10 + 100) / 3600)
    assert on_disk(report)["projection"]["env_steps"] == 800


def test_when_time_is_up_the_process_ends_and_says_where_the_measurements_are(report, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(gpu.os, "_exit", codes.append)
    gpu.stop(report)
    assert codes == [1]
    assert str(report.path) in capsys.readouterr().out.replace("\n", "")
    assert not on_disk(report)["finished"]


def test_what_fails_does_not_take_the_rest_along(report, plan, monkeypatch):
    def fail(*_):
        raise ImportError("no module\n  named warp")

    monkeypatch.setattr(gpu, "physics", fail)
    monkeypatch.setattr(gpu, "learning", lambda report, *_: report.add("seeds", {"seeds": 1}))
    monkeypatch.setattr(gpu, "stage", fail)
    gpu.measure(report, dataclasses.replace(plan, seeds=(1,)))
    content = on_disk(report)
    assert content["seeds"] == [{"seeds": 1}]
    assert content["finished"]
    assert content["notes"] == [
        "the physics of PointMass by jax failed: ImportError: no module named warp",
        "the schedule of MultiGoal failed: ImportError: no module named warp",
    ]


def test_the_full_plan_is_of_the_papers_size():
    plan = gpu.full_plan("jax")
    assert plan.stage_config == gorl.replace(gorl.preset("FingerSpin", "paper"), {"env.implementation": "jax"})
    assert plan.seeds_config.num_stages == 1
    assert plan.seeds == (1, 4, 16)
    assert ("Go1JoystickFlatTerrain", "warp", 8192) in plan.physics


def test_one_part_is_measured_alone_and_leaves_a_file_of_its_own(tmp_path):
    code, _, _ = answering.run(gpu.app, "--smoke", "--part", "physics", "--out", tmp_path)
    assert code == 0
    (path,) = tmp_path.glob("*_physics.json")
    content = json.loads(path.read_text())
    assert len(content["physics"]) == 1
    assert content["seeds"] == content["stage"] == []


def test_an_unknown_part_is_refused(tmp_path):
    code, _, err = answering.run(gpu.app, "--smoke", "--part", "phisics", "--out", tmp_path)
    assert code == 2
    assert "physics" in err
