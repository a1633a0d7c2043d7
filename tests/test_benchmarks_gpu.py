"""The benchmark of a GPU: what it says without one, and that its smoke run leaves all parts."""

import dataclasses
import json

import jax
import pytest
from typer.testing import CliRunner

import gorl
from benchmarks import gpu


@pytest.fixture(autouse=True)
def _one_step_of_physics(monkeypatch):
    """MultiGoal in the place of PointMass, whose physics takes most of a smoke run to compile."""

    def throughput(task, implementation, num_envs, num_steps):
        return real("MultiGoal", None, num_envs, num_steps)

    real = gpu.throughput
    monkeypatch.setattr(gpu, "throughput", throughput)


@pytest.fixture
def plan():
    return gpu.smoke_plan()


@pytest.fixture
def report(tmp_path):
    def make(minutes=5.0):
        return gpu.Report(tmp_path / "report.json", minutes, {})

    return make


def on_disk(report):
    return json.loads(report.path.read_text())


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_there_is_a_sentence_and_exit_code_2(tmp_path):
    result = CliRunner().invoke(gpu.app, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == "gpu: JAX finds no GPU here: run this where there is one, or give --smoke.\n"
    assert not list(tmp_path.iterdir())


def test_a_smoke_run_leaves_all_parts(tmp_path):
    result = CliRunner().invoke(gpu.app, ["--smoke", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    assert content["finished"]
    assert content["smoke"]
    assert [row["finite"] for row in content["physics"]] == [True]
    one, two = content["seeds"]
    assert (one["seeds"], two["seeds"], one["ratio_to_one_by_one"]) == (1, 2, 1.0)
    assert two["ratio_to_one_by_one"] == pytest.approx(two["chunk_seconds"] / (2 * one["chunk_seconds"]))
    assert two["steps_per_second"] == pytest.approx(2 * 40 / two["chunk_seconds"])
    assert [row["kind"] for row in content["stage"]] == [
        gpu.COMPILING,
        *[gpu.FIRST] * 3,
        gpu.EVALUATION,
        gpu.REFINEMENT,
        gpu.EVALUATION,
        *[gpu.DECODED] * 3,
    ]
    assert content["projection"]["hours"] > 0
    assert content["notes"] == ["Warp was left out: it needs CUDA, and this only shows that the rest runs."]
    assert "one by one" in result.stdout


def test_the_projection_is_chunks_times_their_medians(report, plan):
    whole = report()
    for kind, seconds in [(gpu.FIRST, 1.0), (gpu.FIRST, 3.0), (gpu.EVALUATION, 10.0), (gpu.DECODED, 4.0)]:
        gpu.add_chunk(whole, plan.stage_config, kind, seconds)
    assert on_disk(whole)["projection"]["hours"] is None
    gpu.add_chunk(whole, plan.stage_config, gpu.REFINEMENT, 100.0)
    # Ten iterations in each stage; evaluations before, amid and after them, and a last one.
    assert on_disk(whole)["projection"]["hours"] == pytest.approx((10 * 2 + 10 * 4 + 7 * 10 + 100) / 3600)
    assert on_disk(whole)["projection"]["env_steps"] == 800


def test_what_does_not_fit_is_left_out_with_a_sentence(report, plan):
    late = report(minutes=0.0)
    gpu.measure_physics(late, plan, 0.35)
    gpu.measure_seeds(late, plan, 0.65)
    content = on_disk(late)
    assert (content["physics"], content["seeds"], content["finished"]) == ([], [], False)
    assert [note.split(" was left out")[0] for note in content["notes"]] == [
        "the physics of PointMass by jax",
        "learning of 1 seeds",
    ]


def test_what_fails_does_not_take_the_rest_along(report, plan, monkeypatch):
    def fail(*_):
        raise ImportError("no module\n  named warp")

    monkeypatch.setattr(gpu, "throughput", fail)
    monkeypatch.setattr(gpu, "learning", lambda *_: {"seeds": 1})
    monkeypatch.setattr(gpu, "measure_stage", fail)
    whole = report()
    gpu.measure(whole, dataclasses.replace(plan, seeds=(1,)))
    content = on_disk(whole)
    assert content["seeds"] == [{"seeds": 1}]
    assert content["finished"]
    assert content["notes"] == [
        "the physics of PointMass by jax failed: ImportError: no module named warp",
        "the chunks of MultiGoal failed: ImportError: no module named warp",
    ]


def test_the_full_plan_is_of_the_papers_size():
    plan = gpu.full_plan("jax")
    assert plan.stage_config == gorl.replace(gorl.preset("FingerSpin", "paper"), {"env.implementation": "jax"})
    assert plan.seeds_config.num_stages == 1
    assert plan.seeds == (1, 2, 4, 8, 16)
