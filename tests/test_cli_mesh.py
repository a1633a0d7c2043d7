"""`--mesh`: the devices of a run, of which the tests have two."""

import json

import pytest

RUN = (
    "train", "MultiGoal", "--method", "ppo", "--seeds", "1", "--steps", "80", "--set=learner.num_envs=4",
    "--set=learner.unroll_length=5", "--set=learner.num_minibatches=1", "--set=learner.num_epochs=1",
    "--set=env.episode_length=5", "--set=evaluation_episodes=2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("seed=2", "no axis of --mesh is called 'seed': did you mean 'seeds'?"),
        ("seeds", "--mesh seeds is not a mesh: give each axis one number of devices, as --mesh seeds=2,envs=4."),
        ("seeds=0", "--mesh seeds=0 is not a mesh"),
        ("envs=1,envs=2", "--mesh envs=1,envs=2 is not a mesh"),
        ("seeds=2,envs=4", "--mesh seeds=2,envs=4 takes 8 devices, and there are 2: ask for fewer, or set JAX_NUM_CPU"),
        (
            "seeds=2",
            "which do not divide the number of seeds, 1: take 1 along 'seeds'.",
        ),
    ],
)
def test_what_is_no_mesh_of_this_run_is_refused(command, tmp_path, mesh, message):
    code, out, error = command(*RUN, "--mesh", mesh, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_other_devices_and_says_so(command, tmp_path):
    run = tmp_path / "run"
    code, _, error = command(*RUN, "--mesh", "envs=2", "--out", run)
    assert code == 0, error
    code, _, error = command("resume", run, "--steps", "160")
    assert code == 0, error
    assert "not be the same bit for bit as if it had not been stopped: a seed was on 2 devices and is on 1" in error
    code, _, error = command("resume", run, "--steps", "240")
    assert code == 0, error
    assert "bit for bit" not in error
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 240
