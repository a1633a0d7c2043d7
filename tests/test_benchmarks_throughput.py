"""The benchmark of the parts of a run: that it leaves all of them, over limits that are those of what they do."""

import json

import equinox as eqx
import jax
import pytest

import gorl
from benchmarks import _report, throughput

RESULTS = _report.RESULTS / "throughput"


def test_the_ratio_of_a_part_is_its_time_over_that_of_its_limits(monkeypatch):
    monkeypatch.setattr(throughput, "median_seconds", lambda *call, repeats: 3.0)
    part = throughput.part("rollout", "env steps", 600, (None,), 9.0, 1.0, 0.5)
    assert (part["ratio"], part["per_second"], part["compiling"]) == (2.0, 200.0, 9.0)
    alone = throughput.part("physics", "env steps", 600, (None,), 9.0, None, 0.0)
    assert (alone["ratio"], alone["physics"]) == (1.0, 3.0)


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
    assert content["parts"] == parts
    assert content["repeats"] == throughput.REPEATS
    assert {part["name"].partition(",")[0] for part in parts} == {
        "physics",
        "rollout",
        "PPO update",
        "regression epoch",
        "physics of an evaluation",
        "evaluation",
    }
    assert all(part["running"] > 0 and part["physics"] + part["products"] > 0 for part in parts)
    learner = tiny.learner
    by_name = {part["name"]: part for part in parts}
    assert by_name["rollout, identity"]["amount"] == tiny.steps_per_iteration
    assert by_name["PPO update"]["amount"] == tiny.steps_per_iteration * learner.num_epochs
    drawn = throughput.figure({"MultiGoal": parts})
    (panel,) = drawn.axes
    # Bars that are stacked to the whole.
    ends = {round(bar.get_x() + bar.get_width(), 6) for bar in panel.patches[-len(panel.get_yticklabels()) :]}
    assert ends == {1.0}


def test_a_product_of_matrices_takes_some_time():
    assert 0 < throughput.product_seconds(8, 4, 2) < 1


def test_the_seconds_of_a_run_are_by_phase_and_stage_and_the_step_that_compiles_is_apart(tiny, monkeypatch):
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
    def cut_short(config):
        yield {"name": "physics"}
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput, "measure", cut_short)
    path = tmp_path / "MultiGoal.json"
    with pytest.raises(KeyboardInterrupt):
        throughput.measure_task("MultiGoal", tiny, False, path)
    content = json.loads(path.read_text())
    assert not content["finished"]
    assert content["parts"] == [{"name": "physics"}]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_committed_results_can_be_drawn(path):
    content = json.loads(path.read_text())
    assert throughput.figure({content["task"]: content["parts"]}).axes
