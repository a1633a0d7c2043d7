"""The benchmark of physics: what its ratios are made of. How fast a machine is no test can say."""

import json

import answering
import pytest

from benchmarks import physics

SECONDS = {"engine alone": 2.0, "mujoco": 4.0, "jax": 5.0, "envpool": 8.0}


@pytest.fixture
def stand_ins(monkeypatch):
    """Measurements that take no time."""

    once = iter([4.0, 5.0] * 100)
    monkeypatch.setattr(physics, "engine_seconds", lambda *_: SECONDS["engine alone"])
    monkeypatch.setattr(physics, "physics_program", lambda *_: (None, (), 1.0))
    monkeypatch.setattr(physics, "once", lambda *_: next(once))
    monkeypatch.setattr(
        physics, "rollout_timer", lambda config: (lambda: {"mujoco": 30.0, "jax": 10.0}[config.env.implementation], 3.0)
    )
    monkeypatch.setattr(physics, "envpool_seconds", lambda *_: SECONDS["envpool"])
    monkeypatch.setattr(physics.importlib.util, "find_spec", lambda name: name)


def test_ratios_are_those_of_medians(stand_ins, tmp_path):
    code, out, _ = answering.run(
        physics.app,
        "--task",
        "PointMass",
        "--num-envs",
        10,
        "--num-steps",
        20,
        "--repeats",
        2,
        "--envpool",
        "--out",
        tmp_path,
    )
    assert code == 0
    content = json.loads((tmp_path / "PointMass.json").read_text())
    assert content["medians"] == {
        "engine alone": 100.0,
        "scan, mujoco": 50.0,
        "scan, jax": 4.0,  # of a tenth of the steps
        "rollout, mujoco": 30.0,
        "rollout, jax": 10.0,
        "scan, EnvPool": 25.0,
    }
    assert content["ratios"] == {
        "scan over engine alone": 0.5,
        "scan over EnvPool": 2.0,
        "scan over MJX": 12.5,
        "rollout over MJX": 3.0,
    }
    assert content["steps_per_second"]["engine alone"] == [100.0, 100.0]
    assert content["compiling"]["rollout, jax"] == 3.0
    assert content["repeats"] == 2
    assert "12.5" in out


def test_without_mjx_and_envpool_there_are_no_ratios_to_them(stand_ins, tmp_path):
    assert answering.run(physics.app, "--task", "PointMass", "--no-jax", "--repeats", 1, "--out", tmp_path)[0] == 0
    content = json.loads((tmp_path / "PointMass.json").read_text())
    assert set(content["medians"]) == {"engine alone", "scan, mujoco", "rollout, mujoco"}
    assert set(content["ratios"]) == {"scan over engine alone"}


def test_envpool_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(physics.importlib.util, "find_spec", lambda name: None)
    code, _, err = answering.run(physics.app, "--envpool", "--out", tmp_path)
    assert (code, err) == (2, "benchmarks.physics: envpool is not installed: pip install envpool.\n")


def test_what_mujoco_does_not_simulate_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(physics, "measure", lambda *_: pytest.fail("it was measured"))
    code, _, err = answering.run(physics.app, "--task", "PointMass", "--task", "MultiGoal", "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "MultiGoal is none" in err
