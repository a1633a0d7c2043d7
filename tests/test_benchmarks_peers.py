"""The benchmark of peers: what a run cut short leaves, and what its ratios are made of."""

import json
import subprocess
import sys

import answering
import pytest
from quick import quick_environment

from benchmarks import peers

RATES = {"gorl": [1.0, 2.0, 300.0, 600.0, 900.0], "brax": [5e6, 1.0, 100.0, 200.0, 150.0]}
SECONDS = {"gorl": 2.0, "brax": 5.0}


def on_disk(path):
    return json.loads(path.read_text())


@pytest.fixture
def measured(monkeypatch):
    """The runs there have been, with rates and seconds that are known."""
    runs = []

    def run_ppo(name, settings):
        runs.append((name, settings))
        return {"steps_per_second": RATES[name], "seconds": SECONDS[name]}

    monkeypatch.setattr(peers, "run_ppo", run_ppo)
    return runs


def test_ratios_leave_out_the_iterations_that_compile(tmp_path, measured):
    code, out, _ = answering.run(peers.app, "--repeats", 2, "--set", "learner.num_envs=64", "--out", tmp_path)
    assert code == 0
    assert [name for name, _ in measured] == ["gorl", "brax"] * 2
    content = on_disk(tmp_path / "brax_CartpoleSwingup.json")
    assert content["rate_ratio"] == 600 / 150
    assert content["time_ratio"] == 5 / 2
    assert content["finished"]
    assert content["repeats"] == 2
    assert content["settings"]["num_envs"] == 64
    assert content["settings"]["steps"] == 64 * 30 * 8 * 6
    assert content["runs"]["brax"]["steps_per_second"] == [RATES["brax"]] * 2
    assert "4.00" in out


def test_what_is_cut_short_leaves_what_it_had(tmp_path, measured, monkeypatch):
    def run_ppo(name, settings):
        if len(measured) == 3:
            raise SystemExit("no more")
        return fake(name, settings)

    fake = peers.run_ppo
    monkeypatch.setattr(peers, "run_ppo", run_ppo)
    assert answering.run(peers.app, "--out", tmp_path)[0] == "no more"
    content = on_disk(tmp_path / "brax_CartpoleSwingup.json")
    assert (content["runs"]["gorl"]["seconds"], content["runs"]["brax"]["seconds"]) == ([2.0, 2.0], [5.0])
    assert not content["finished"]
    assert "rate_ratio" not in content


def test_only_sizes_can_be_set(tmp_path, measured):
    code, _, err = answering.run(peers.app, "--set", "learner.policy_widht=64", "--out", tmp_path)
    assert code == 2
    assert "did you mean 'learner.policy_width'" in err
    assert not measured


def test_our_process_prints_the_rate_of_each_iteration():
    settings = {name.removeprefix("learner."): value for name, value in peers.SIZES.items()}
    settings |= {"num_envs": 8, "unroll_length": 5, "num_unrolls": 1, "num_minibatches": 1, "policy_width": 8}
    settings |= {"value_width": 8, "task": "MultiGoal", "iterations": 3, "steps": 3 * 8 * 5}
    command = [sys.executable, "-m", "benchmarks._peer_gorl", json.dumps(settings)]
    done = subprocess.run(command, env=quick_environment(), capture_output=True, text=True, check=True)
    rates = json.loads(done.stdout.splitlines()[-1])["steps_per_second"]
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates)
