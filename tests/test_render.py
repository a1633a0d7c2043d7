"""Films. Those that are drawn are made by `render_oracle.py` in a process of its own."""

import json
import subprocess
import sys

import jax
import mujoco
import numpy as np
import pytest
import render_oracle

import gorl
from gorl._env import scene
from gorl._render import _camera_index, runaway

CAMERAS = '<camera name="side" pos="0 -1 0"/><camera pos="0 0 1"/><camera name="track" pos="0 1 0" mode="trackcom"/>'


@pytest.fixture(scope="module")
def figures():
    return json.loads(render_oracle.drawing_process(render_oracle.__file__))


def test_every_frame_shows_its_step_until_the_episode_ends_and_then_stands_still(figures):
    film = figures["slide"]
    assert figures["moves"] > 50  # a frame that is a step off would be seen
    assert max(film["difference"]) <= 1
    assert film["num_frames"] == [limit + 1 for limit in figures["limits"]]
    assert film["shape"] == [4, 10, 48, 64, 3]
    assert film["frames_per_second"] == pytest.approx(1 / 0.04)


def test_the_returns_are_those_of_the_steps_that_were_played(figures):
    assert figures["slide"]["returns"] == [limit * (limit + 1) / 2 for limit in figures["limits"]]
    assert figures["two_steps"]["returns"] == [1 + 2] * 4


def test_how_far_it_is_is_told_after_every_frame(figures):
    total = sum(figures["slide"]["num_frames"])
    assert figures["calls"] == [[drawn, total] for drawn in range(1, total + 1)]


def test_a_slower_film_leaves_steps_out_but_never_the_last(figures):
    film = figures["slower"]
    assert film["frames_per_second"] == pytest.approx(12.5)
    # Three steps and nine are an odd number: the last frame is less than two steps from the one before.
    assert film["num_frames"] == [1 + (limit + 1) // 2 for limit in figures["limits"]]
    assert film["shape"][1] == 6
    assert max(film["difference"]) <= 1


def test_an_episode_can_be_left_early(figures):
    assert figures["two_steps"]["shape"][1] == 3
    assert figures["two_steps"]["num_frames"] == [3] * 4
    assert max(figures["two_steps"]["difference"]) <= 1


def test_an_action_that_is_held_takes_its_time(figures):
    film = figures["repeated"]
    assert film["frames_per_second"] == pytest.approx(1 / (2 * 0.04))
    assert max(film["difference"]) <= 1


def test_a_frame_may_be_larger_than_the_model_allows_for(figures):
    assert figures["large"] == {"shape": [1, 2, 700, 900, 3], "leaves_model": True}


def test_a_simulation_that_blew_up_stands_still_where_it_last_was(figures):
    assert figures["blown_up"]["num_frames"] == figures["slide"]["num_frames"]
    assert max(figures["blown_up"]["difference"]) <= 1


def test_the_episodes_are_those_of_evaluate(figures):
    np.testing.assert_allclose(figures["multigoal"]["returns"], figures["evaluated"], rtol=1e-5)
    assert np.ptp(figures["evaluated"]) > 0.1


def test_the_ball_of_multigoal_is_drawn_where_it_is(figures):
    film = figures["multigoal"]
    assert film["shape"] == [4, 51, 240, 240, 3]
    assert film["frames_per_second"] == pytest.approx(10)
    assert film["pixels"] > 20
    # The camera hangs 6 above the ground and 5.93 above the ball, and sees 31 degrees.
    pixels_per_unit = 240 / (2 * 5.93 * np.tan(np.radians(31 / 2)))
    x, y = np.transpose(film["starts"])
    expected = np.stack([119.5 + pixels_per_unit * x, 119.5 - pixels_per_unit * y], axis=1)
    np.testing.assert_allclose(film["centre"], expected, atol=1.0)


@pytest.mark.parametrize("family", ["playground", "brax"])
def test_pictures_are_those_that_the_environment_draws_of_itself(figures, family):
    film = figures[family]
    assert max(film["difference"]) <= 1
    assert len(film["changes"]) >= 2  # the pendulum falls soon
    assert min(film["changes"]) > 50
    assert film["frames_per_second"] == pytest.approx({"playground": 1 / 0.02, "brax": 1 / 0.04}[family])


def test_a_machine_without_opengl_gets_a_sentence():
    script = (
        "import types, gorl, jax\n"
        "policy = types.SimpleNamespace(observation_size=2, action_size=2, check_single=lambda: None)\n"
        "try:\n    gorl.render('MultiGoal', policy, jax.random.key(0))\n"
        "except gorl.InputError as error:\n    print(error)"
    )
    command = ["env", "MUJOCO_GL=disable", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "apt install libegl1 libgl1-mesa-dri" in done.stdout
    assert "apt install libosmesa6" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_the_free_camera_is_just_so_far_away_that_what_moves_is_in_the_picture(figures, shape):
    film = figures[f"free_{shape}"]
    margins = [*film["box"]["margin"], *film["ball"]["margin"]]
    assert min(margins) >= 1
    assert min(margins) < 16


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_the_free_camera_follows_a_robot_that_runs_away(figures, shape):
    film = figures[f"follows_{shape}"]
    assert np.abs(film["middle"]).max() <= 2
    assert min(film["margin"]) >= 1
    assert np.max(film["extent"], axis=1).min() > 0.4


def model_of(world):
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{world}</worldbody></mujoco>")


def test_the_camera_is_the_first_unless_one_is_named():
    model = model_of(CAMERAS)
    assert _camera_index(model, None) == 0
    assert [_camera_index(model, name) for name in ("side", "track", "free")] == [0, 2, -1]
    with pytest.raises(gorl.InputError, match="no camera is called 'trak': did you mean 'track'"):
        _camera_index(model, "trak")
    without = model_of("")
    assert _camera_index(without, None) == -1
    with pytest.raises(gorl.InputError, match="no camera is called 'side': there are 'free'"):
        _camera_index(without, "side")


def test_the_camera_of_a_robot_that_can_run_away_is_the_first_that_follows_it():
    robot = '<body><freejoint/><geom size=".1"/></body>'
    assert _camera_index(model_of(CAMERAS + robot), None) == 2
    assert _camera_index(model_of('<camera name="side"/>' + robot), None) == -1
    assert _camera_index(model_of(robot), None) == -1


@pytest.mark.parametrize(
    ("joints", "runs_away"),
    [
        ("<freejoint/>", True),
        ('<joint type="slide"/>', True),
        ('<joint type="hinge"/><joint type="slide"/>', True),
        ('<joint type="slide" range="-1 1"/>', False),
        ('<joint type="hinge"/>', False),
        ('<joint type="ball"/>', False),
        ("", False),
    ],
)
def test_a_robot_can_run_away_on_a_joint_without_end(joints, runs_away):
    robot = f'<body mocap="true"/><body>{joints}<geom size=".1"/><body><joint/><geom size=".1"/></body></body>'
    assert runaway(model_of(robot)) == (2 if runs_away else None)


def test_the_outermost_body_is_followed_wherever_its_joint_is():
    assert runaway(model_of('<body><geom size=".1"/><body><joint type="slide"/><geom size=".1"/></body></body>')) == 1


def test_multigoal_is_seen_from_above():
    model = scene(gorl.MultiGoal()).model
    assert model.camera(_camera_index(model, None)).name == "above"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_episodes": 0}, "num_episodes must be at least 1, not 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"height": 0}, "height must be at least 1, not 0"),
        ({"width": -1}, "width must be at least 1, not -1"),
        ({"frames_per_second": 0.0}, "frames_per_second must be above 0, not 0"),
        ({"frames_per_second": float("nan")}, "frames_per_second must be above 0, not nan"),
        ({"camera": "abov"}, "no camera is called 'abov': did you mean 'above'"),
    ],
)
def test_bad_options_are_refused(make_policy, options, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        gorl.render("MultiGoal", make_policy(2, 2), jax.random.key(0), **options)


def test_a_policy_of_another_environment_is_refused(make_policy, compilations):
    policy, key = make_policy(3, 2), jax.random.key(0)
    compilations.clear()
    with pytest.raises(gorl.InputError, match=r"MultiGoal are \(2, 2\): give the environment that it was trained on"):
        gorl.render("MultiGoal", policy, key)
    assert not compilations


def test_an_environment_without_a_model_is_refused(make_policy, counting):
    with pytest.raises(gorl.InputError, match="Counting has no MuJoCo model to draw: give it an mj_model and a dt"):
        gorl.render(counting(), make_policy(2, 1), jax.random.key(0))


def test_states_without_data_are_refused(counting):
    class Undrawable(counting):
        mj_model: object = None
        dt: float = 0.1

    env = Undrawable()
    with pytest.raises(gorl.InputError, match="no MuJoCo data to draw: give them a field data"):
        scene(env).pose(env.reset(jax.random.key(0)))
