"""The benchmark of the parts of a run: that it leaves all of them, over limits that are those of what they do."""

import dataclasses
import json
import subprocess
import sys

import equinox as eqx
import jax
import pytest

import gorl
from benchmarks import throughput


def test_the_ratio_of_a_part_is_its_time_over_that_of_its_limits():
    part = throughput.Part("rollout", "env steps", 600, compiling=9.0, running=3.0, physics=1.0, products=0.5)
    assert part.ratio == pytest.approx(2.0)
    assert part.as_json()["per_second"] == pytest.approx(200.0)


def test_a_gradient_is_limited_by_the_products_of_each_layer_and_of_the_gradients_of_its_weights_and_inputs(
    monkeypatch,
):
    monkeypatch.setattr(throughput, "product_seconds", lambda rows, inner, columns: rows * inner * columns)
    network = eqx.nn.MLP(3, 2, 5, 2, key=jax.random.key(0))
    layers = 3 * 5 + 5 * 5 + 5 * 2
    assert throughput.forward_seconds(network, 7) == 7 * layers
    # The gradient of what goes into the first layer nobody asks for.
    assert throughput.gradient_seconds(network, 7) == 7 * (3 * layers - 3 * 5)


def test_all_parts_are_left_and_drawn(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "product_seconds", lambda *sizes: 1e-6)  # dozens of programs
    parts = throughput.measure_task("MultiGoal", tiny, False, tmp_path / "MultiGoal.json")
    content = json.loads((tmp_path / "MultiGoal.json").read_text())
    assert content["finished"]
    assert [part["name"] for part in content["parts"]] == [part.name for part in parts]
    assert {part.name.partition(",")[0] for part in parts} == {
        "physics",
        "rollout",
        "PPO update",
        "regression epoch",
        "physics of an evaluation",
        "evaluation",
    }
    assert all(part.running > 0 and part.physics + part.products > 0 for part in parts)
    learner = tiny.learner
    by_name = {part.name: part for part in parts}
    assert by_name["rollout, identity"].amount == tiny.steps_per_iteration
    assert by_name["PPO update"].amount == tiny.steps_per_iteration * learner.num_epochs
    drawn = throughput.figure({"MultiGoal": parts})
    (panel,) = drawn.axes
    # Bars that are stacked to the whole.
    ends = {round(bar.get_x() + bar.get_width(), 6) for bar in panel.patches[-len(panel.get_yticklabels()) :]}
    assert ends == {1.0}


def test_a_product_of_matrices_takes_some_time():
    assert 0 < throughput.product_seconds(8, 4, 2) < 1


def test_the_seconds_of_a_run_are_by_phase_and_stage_and_the_chunk_that_compiles_is_apart(tiny, monkeypatch):
    def timed(config, key):
        return ((step, None, 100.0 if step.index == 0 else 1.0) for step in gorl.make_schedule(config))

    monkeypatch.setattr(throughput, "timed", timed)
    found = throughput.run_seconds(tiny)
    assert found == {
        "first, compiling": 100.0,
        "learn, stage 0": 5.0,
        "evaluate, stage 0": 3.0,
        "refine, stage 0": 1.0,
        "evaluate, stage 1": 5.0,
        "learn, stage 1": 5.0,
    }


def test_a_measurement_that_is_cut_short_leaves_what_it_had(tiny, tmp_path, monkeypatch):
    part = throughput.Part("physics", "env steps", 1, 1.0, 1.0, 1.0, 0.0)

    def cut_short(config, say):
        say(part)
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "measure", cut_short)
    path = tmp_path / "MultiGoal.json"
    with pytest.raises(KeyboardInterrupt):
        throughput.measure_task("MultiGoal", tiny, False, path)
    content = json.loads(path.read_text())
    assert not content["finished"]
    assert [found["name"] for found in content["parts"]] == [part.name]
    assert dataclasses.asdict(part).items() <= content["parts"][0].items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "PointMas"], "PointMass"),
        (["--set", "learner.num_envs"], "--set learner.num_envs sets nothing: write it as FIELD=VALUE."),
        (["--set", "learner.num_env=3"], "did you mean 'num_envs'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, arguments, words):
    command = [sys.executable, "-m", "benchmarks.throughput", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_settings_are_those_of_the_fields(tiny):
    config = throughput.with_settings(tiny, ["learner.num_envs=32", "stage_steps = 640,320"])
    assert config == gorl.replace(tiny, {"learner.num_envs": 32, "stage_steps": (640, 320)})
