"""MuJoCo Playground's robots, made of the files that are on this machine."""

import pathlib

import mujoco
import numpy as np
import pytest
from mujoco_playground import locomotion, manipulation
from mujoco_playground._src import mjx_env

import gorl
from gorl._env._menagerie import is_placeholder, make_robot
from gorl._env._quiet import without_warnings

SUITES = {name: suite for suite in (locomotion, manipulation) for name in suite.ALL_ENVS}
# Their physics is in files of Menagerie, of which neither Playground nor this project has any.
LACKING = {
    "AlohaHandOver",
    "AlohaSinglePegInsertion",
    "BarkourJoystick",
    "PandaOpenCabinet",
    "PandaPickCube",
    "PandaPickCubeCartesian",
    "PandaPickCubeOrientation",
    "PandaRobotiqPushCube",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine without Menagerie, on which nothing may be downloaded."""

    def download(*_, **__):
        raise AssertionError("this would download")

    monkeypatch.delenv("MENAGERIE_ROOT", raising=False)
    monkeypatch.setattr(mjx_env, "ensure_menagerie_exists", download)
    monkeypatch.setattr(mjx_env, "_clone_with_progress", download)
    monkeypatch.setattr(mjx_env.subprocess, "run", download, raising=False)
    if mjx_env.MENAGERIE_PATH.exists():
        pytest.skip("Playground has downloaded Menagerie here")


def make(name):
    suite = SUITES[name]
    options = suite.get_default_config(name)
    if "impl" in options:
        options.impl = "jax"
    with without_warnings():
        return make_robot(name, suite._envs[name], config=options)


@pytest.mark.parametrize("name", SUITES)
def test_a_robot_is_made_or_says_what_it_lacks(name):
    if name in LACKING:
        with pytest.raises(gorl.InputError, match=rf"{name} needs files of \w+.* this machine lacks .*MENAGERIE_ROOT"):
            make(name)
        return
    task = make(name)
    assert task.action_size == gorl.environments()[name][1]
    # The class is Playground's own again, and its module is as it was.
    assert type(task).__module__.startswith("mujoco_playground")
    assert mjx_env.MENAGERIE_PATH.name == "mujoco_menagerie"


def test_placeholders_collide_with_nothing_and_weigh_nothing():
    task = make("Go1JoystickFlatTerrain")
    missing = [name for name, content in task._model_assets.items() if is_placeholder(content)]
    assert missing
    model = task.mj_model
    of_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    assert of_mesh.any()
    assert not model.geom_contype[of_mesh].any()
    assert not model.geom_conaffinity[of_mesh].any()
    np.testing.assert_allclose(model.body_mass.sum(), 12.7, atol=1.0)  # that of the robot, from its MJCF


def test_the_command_line_is_told_of_placeholders():
    env = gorl.load_environment(gorl.EnvConfig("Go1JoystickFlatTerrain"))
    assert (env.policy_part, env.critic_part, env.observation_size, env.critic_observation_size) == (
        "state",
        "privileged_state",
        48,
        123,
    )
    assert all(pathlib.PurePath(name).suffix in (".stl", ".obj") for name in gorl.placeholder_meshes(env))
    assert gorl.placeholder_meshes(env)
    assert gorl.placeholder_meshes(gorl.load_environment(gorl.EnvConfig("PointMass"))) == ()
    assert gorl.observation_parts()["Go1JoystickFlatTerrain"] == {"state": 48, "privileged_state": 123}


def test_a_named_directory_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(gorl.InputError, match=r"MENAGERIE_ROOT=.*nowhere is no directory: set it to a checkout"):
        make("Go1JoystickFlatTerrain")


def test_a_checkout_that_lacks_the_robot_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path))
    with pytest.raises(gorl.InputError, match=rf"franka_emika_panda .*MENAGERIE_ROOT={tmp_path} lacks"):
        make("PandaPickCube")
