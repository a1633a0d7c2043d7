"""`gorl view`: an episode that a person reaches into, against physics by hand and a browser."""

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
import socket
import threading
import time
import types
import urllib.request

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import gorl
from gorl_cli._player import PUSH_SECONDS, Clock, Player
from gorl_cli._view import Viewer, free_port, with_floors

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NASTY = "<img src=x onerror=\"alert('1')\"></script><b>&amp;"

# A puck of 2 kg that floats, and an arm on a motor.
FLOATING = """
<mujoco>
  <option gravity="0 0 0" timestep=".01"/>
  <worldbody>
    <geom type="plane" size="3 3 .1" pos="0 0 -1"/>
    <body name="puck">
      <freejoint/>
      <inertial pos="0 0 0" mass="2" diaginertia=".1 .1 .1"/>
      <geom type="box" size=".3 .3 .1" rgba=".8 .2 .2 1"/>
    </body>
    <body name="arm" pos="-.5 .8 0">
      <joint name="hinge" axis="0 1 0" damping="1"/>
      <geom type="capsule" fromto="0 0 0 -.8 0 0" size=".1" mass="1" rgba=".2 .2 .8 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" gear="8" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


class Floating(gorl.MujocoEnv):
    """Pays what its command is."""

    def __init__(self):
        commands = {"forward": gorl.Command(1.0, 2.0, "m/s"), "turn": gorl.Command(3.0, 4.0)}
        super().__init__(FLOATING, control_timestep=0.02, episode_length=200, commands=commands, command_period=0.1)

    def start(self, data, key):
        return data

    def observe(self, data):
        return jnp.concatenate([self.command(data), data.qpos])

    def reward(self, data, action):
        return self.command(data)[0]


@pytest.fixture(scope="module")
def floating():
    """The environment, loaded once; and once with noise on its sensors."""
    return gorl.load_environment(gorl.EnvConfig(Floating()))


@pytest.fixture(scope="module")
def shared(floating):
    return Player(floating, None, spread=0.0)


@pytest.fixture
def player(shared):
    """A player at the start of an episode, with zero actions."""
    shared.restart()
    shared.spread, shared.last_return = 0.0, None
    shared.fixed.clear()
    return shared


def played(player):
    """The return of a whole episode."""
    while not player.is_over:
        player.step()
    return player.total


# --- Who acts. ---


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_first_episode_is_that_of_gorl_eval(finished_run, spread):
    policies, env = finished_run.policies(), finished_run.config.env
    player = Player(gorl.load_environment(env), policies, seed=2, key=4, spread=spread)
    (expected,) = gorl.evaluate(
        env, gorl.of_seed(policies, 2), jax.random.key(4), num_episodes=1, stochastic=spread > 0
    )
    assert played(player) == pytest.approx(float(expected), rel=1e-5)
    assert player.num_steps == 20
    player.restart()
    assert player.episode == 1
    assert player.last_return == pytest.approx(float(expected), rel=1e-5)
    assert played(player) != pytest.approx(float(expected), rel=1e-3)


def test_the_spread_scales_the_noise_of_the_latent(make_policy):
    policies = jax.tree.map(lambda leaf: leaf[None], make_policy(2, 2, plain=True))
    player = Player(gorl.load_environment(gorl.EnvConfig("MultiGoal")), policies)
    latents = []
    for spread in (0.0, 0.5, 2.0):
        player.episode, player.num_steps = -1, 0
        player.spread = spread
        player.restart()
        before = player.data.qpos.copy()
        player.step()
        latents.append(np.arctanh((player.data.qpos - before) * 10))  # the plane is ten times as large as an action
    assert np.abs(latents[1] - latents[0]).min() > 1e-3
    np.testing.assert_allclose(latents[2] - latents[0], 4 * (latents[1] - latents[0]), rtol=2e-2)


# --- What reaches into an episode. ---


def test_a_push_changes_the_momentum_by_force_times_time(player):
    puck = player.model.body("puck").id
    player.push(puck, np.array([3.0, -4.0, 0.0]))
    for _ in range(round(PUSH_SECONDS / player.seconds)):
        player.step()
    velocity = player.data.qvel[:3].copy()
    np.testing.assert_allclose(velocity, np.array([3.0, -4.0, 0.0]) * PUSH_SECONDS / 2.0, rtol=1e-4)
    assert abs(player.data.qpos[7]) < 1e-6  # the arm was not pushed
    for _ in range(5):
        player.step()
    np.testing.assert_allclose(player.data.qvel[:3], velocity, rtol=1e-5)
    assert not player.is_over


def test_a_pull_brings_the_grabbed_point_to_the_mouse(player):
    puck = player.model.body("puck").id
    corner, there = np.array([0.3, 0.3, 0.1]), np.array([0.8, 0.1, 0.4])
    player.grab(puck, player.data.xpos[puck] + corner)
    player.pull(there)
    for _ in range(150):
        player.step()
    now = player.data.xpos[puck] + player.data.xmat[puck].reshape(3, 3) @ corner
    assert np.linalg.norm(now - there) < 0.05
    player.release()
    assert not player._force().any()


def test_a_command_holds_until_it_is_given_back(player, floating):
    player.fixed["forward"] = -0.5
    assert played(player) == pytest.approx(-0.5 * 200, rel=1e-5)  # it is drawn anew every fifth step
    player.restart()
    player.fixed.clear()
    assert 200 <= played(player) <= 400
    assert player.total % 1 > 0


def test_noise_of_the_sensors_stays_when_a_command_changes_and_forces_come_and_go():
    env = gorl.load_environment(gorl.EnvConfig(Floating(), randomization="noise=0.1"))
    episode = env.start(jax.random.key(1))
    state = gorl._env.with_commands(env.env.whole, episode.state, jnp.array([9.0, 0.0]), jnp.array([True, False]))
    changed = np.asarray(state.obs - episode.state.obs)
    drawn = episode.state.data.userdata
    np.testing.assert_allclose(changed, [9.0 - drawn[0], *np.zeros(9)], atol=1e-5)
    assert np.abs(np.asarray(state.obs)[2:]).max() > 0.01
    np.testing.assert_allclose(state.data.userdata, [9.0, drawn[1]])

    force = jnp.zeros((3, 6)).at[1, 2].set(5.0)
    after, seen = gorl._env.under_force(state, force, lambda state: (state, state.data.xfrc_applied))
    np.testing.assert_array_equal(seen, force)
    np.testing.assert_array_equal(after.data.xfrc_applied, np.zeros((3, 6)))
    own = state.data.replace(xfrc_applied=2 * force)  # a task that pushes by itself
    pushing = dataclasses.replace(state, state=dataclasses.replace(state.state, data=own))
    kept, _ = gorl._env.under_force(state, force, lambda _: (pushing, None))
    np.testing.assert_array_equal(kept.data.xfrc_applied, 2 * force)


def test_a_simulation_that_blew_up_stays_at_its_last_pose(player):
    before = player.data.qpos.copy()
    moment = gorl.internal.Moment(
        {"qpos": jnp.full(8, jnp.nan)}, jnp.zeros(7), jnp.zeros(()), jnp.zeros((), int), jnp.ones((), bool)
    )
    gorl.internal.show(player.model, player.data, moment)
    np.testing.assert_array_equal(player.data.qpos, before)
    shifted = jnp.asarray(before + np.eye(8)[0], jnp.float32)
    gorl.internal.show(player.model, player.data, dataclasses.replace(moment, pose={"qpos": shifted}))
    np.testing.assert_allclose(player.data.xpos[1], [1.0, 0.0, 0.0], atol=1e-6)


def test_the_commands_of_playgrounds_joysticks_have_their_ranges():
    from mujoco_playground import locomotion

    state = types.SimpleNamespace(info={"command": np.zeros(3)})
    expected = {
        "Go1JoystickFlatTerrain": [(-1.5, 1.5), (-0.8, 0.8), (-1.2, 1.2)],
        "G1JoystickFlatTerrain": [(-1.0, 1.0), (-0.5, 0.5), (-1.0, 1.0)],
        "ApolloJoystickFlatTerrain": [(-1.5, 1.5), (-0.8, 0.8), (-1.5, 1.5)],
        "BarkourJoystick": [(-0.6, 1.5), (-0.8, 0.8), (-0.7, 0.7)],
        "H1JoystickGaitTracking": [(-1.5, 1.5), (-0.5, 0.5), (-1.0, 1.0)],
    }
    for name, ranges in expected.items():
        env = types.SimpleNamespace(_config=locomotion.get_default_config(name))
        found = gorl._env.commands_of(env, state)
        assert list(found) == ["forward", "sideways", "turn"]
        assert [(command.low, command.high) for command in found.values()] == ranges
        assert gorl._env.commands_of(env, types.SimpleNamespace(info={})) == {}


def test_a_command_of_playgrounds_kind_is_one_of_its_state():
    @eqx.filter_jit
    def changed(state):
        return gorl._env.with_commands(None, state, jnp.array([1.0, 2.0, 3.0]), jnp.array([True, False, True]))

    class State(eqx.Module):
        info: dict

    after = changed(State({"command": jnp.array([7.0, 8.0, 9.0]), "other": jnp.ones(2)}))
    np.testing.assert_array_equal(after.info["command"], [1.0, 8.0, 3.0])
    np.testing.assert_array_equal(after.info["other"], [1.0, 1.0])


# --- What is shown. ---


@pytest.mark.parametrize(("name", "num_planes"), [("MultiGoal", 2), ("CheetahRun", 0)])
def test_small_planes_become_boxes_whose_top_is_where_the_plane_is(name, num_planes):
    model = gorl.internal.scene(gorl.load_environment(gorl.EnvConfig(name)).env.whole).model
    planes = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
    changed = with_floors(copy.copy(model))
    boxes = np.flatnonzero(changed.geom_type[planes] == mujoco.mjtGeom.mjGEOM_BOX)
    assert len(boxes) == num_planes  # the other is a floor that a robot runs along
    tops = changed.geom_pos[planes, 2] + changed.geom_size[planes, 2]
    np.testing.assert_allclose(tops[boxes], model.geom_pos[planes, 2][boxes], atol=1e-9)
    assert (model.geom_type[planes] == mujoco.mjtGeom.mjGEOM_PLANE).all()


# --- Real time. ---


def acts(clock, times):
    """The number of actions at each time."""
    counts = []
    for now in times:
        counts.append(0)
        while clock.is_due(now):
            clock.acted()
            counts[-1] += 1
    return counts


@pytest.mark.parametrize(("seconds", "speed"), [(0.02, 1.0), (0.025, 0.1), (0.01, 4.0), (0.3, 1.0)])
def test_a_clock_keeps_real_time(seconds, speed):
    clock = Clock(seconds, 100.0)
    clock.speed = speed
    times = 100.0 + np.arange(1, 1001) / 100
    assert sum(acts(clock, times)) == pytest.approx(speed * 10 / seconds, abs=1)
    assert clock.factor == pytest.approx(speed, abs=2 * seconds)


def test_a_clock_leaves_out_what_is_far_too_late():
    clock = Clock(0.02, 0.0)
    assert acts(clock, [5.0, 5.01, 5.02]) == [12, 1, 0]
    clock.rest(60.0)
    assert acts(clock, [60.0, 60.02]) == [0, 1]


# --- Ports. ---


def test_a_taken_port_is_the_next_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) in range(port + 1, port + 100)
    assert free_port("127.0.0.1", port) == port


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("203.0.113.7", 8080, "--host 203.0.113.7 is no address of this machine: leave it out"),
        ("no such host", 8080, "--host no such host is no address of this machine"),
        ("127.0.0.1", 70000, "--port 70000 is no port: choose 1024 to 65535"),
        ("127.0.0.1", 0, "--port 0 is no port"),
    ],
)
def test_no_address(host, port, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        free_port(host, port)


# --- The command. ---


def test_the_command_shows_a_run_until_ctrl_c(finished_run, command):
    """The page answers on this machine only; the port that is taken is the next one."""
    found = {}

    def look(port):
        while not found:
            for candidate in range(port + 1, port + 100):
                with contextlib.suppress(OSError):
                    with urllib.request.urlopen(f"http://127.0.0.1:{candidate}", timeout=1) as page:
                        found["title"] = page.read(2000)
                    with pytest.raises(OSError, match="refused"):
                        socket.create_connection(("127.0.0.2", candidate), timeout=1)
                    found["port"] = candidate
                    break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        threading.Thread(target=look, args=(port,), daemon=True).start()
        code, output, error = command("view", finished_run.directory, "--port", port)
    assert code == 0
    assert b"viser" in found["title"].lower()
    assert output == f"http://127.0.0.1:{found['port']}  (Ctrl-C ends it)\n"
    assert f"port {port} is taken, so this is port {found['port']}" in error
    assert "the policy of seed 6" in error
    assert "Traceback" not in error
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("CheetaRun",), "did you mean 'CheetahRun'"),
        (("runs/nothing",), "runs/nothing is neither a directory nor an environment"),
        (("MultiGoal", "--seed", "1"), "--seed is about a policy, and MultiGoal is an environment"),
        (("MultiGoal", "--stochastic"), "--stochastic is about a policy"),
        (("MultiGoal", "--actions", "zeros"), "did you mean 'zero'"),
        (("MultiGoal", "--host", "203.0.113.7"), "is no address of this machine"),
        (("RUN", "--actions", "zero"), "--actions is for an environment"),
        (("RUN", "--seed", "4"), "there is no seed 4"),
        (("RUN", "--command", "forward=1"), "MultiGoal declares no commands"),
        (("conftest:Counting",), "Counting has no MuJoCo model to draw"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(arguments, sentence, finished_run, command, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing was to be played")

    monkeypatch.setattr("gorl_cli._view.Player", refuse)
    given = [str(finished_run.directory) if word == "RUN" else word for word in arguments]
    code, output, error = command("view", *given)
    assert (code, output) == (2, "")
    assert sentence in error
    assert error.count("\n") <= 2


def test_a_run_without_a_policy_yet(finished_run, command, tmp_path):
    shutil.copytree(finished_run.directory, tmp_path / "run")
    (tmp_path / "run/policies.eqx").unlink()
    code, _, error = command("view", tmp_path / "run", "--seed", "5")
    assert code == 2
    assert "has neither policies.eqx nor a checkpoint yet: train on with gorl resume" in error


def test_without_the_extra(command, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "viser" in name else find(name))
    code, _, error = command("view", "MultiGoal")
    assert code == 2
    assert "gorl view needs viser and mjviser, which are not installed: pip install 'gorl[view]'" in error


# --- The page. ---


@pytest.fixture
def served(player):
    """A viewer of random actions that runs, and the thread that plays."""
    player.spread = 1.0
    viewer = Viewer(player, NASTY, [5, 6], "127.0.0.1", free_port("127.0.0.1", 8137))
    is_over = threading.Event()
    thread = threading.Thread(target=viewer.run, args=(is_over.is_set,))
    thread.start()
    yield viewer, thread
    is_over.set()
    thread.join(10)
    viewer.close()


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed: apt install chromium-driver"
)
def test_a_browser_shows_the_robot_and_its_controls_work(served, player):
    import io

    import PIL.Image
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    viewer, thread = served
    viewer.light(is_plain=True)  # shadows take a processor that draws many seconds
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=700,560"),
        *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))

    def until(holds):
        WebDriverWait(browser, 30, 0.05).until(lambda _: holds())

    def text():
        return browser.execute_script("return document.body.innerText")

    def scene():
        """The pixels left of the panel."""
        picture = PIL.Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        return np.asarray(picture, int)[150:, :350]

    def moved(one, other):
        return np.abs(one - other).max() > 50

    def button(name):
        return browser.find_element(By.XPATH, f"//button[normalize-space()='{name}']")

    try:
        browser.get(viewer.url)
        until(lambda: player.num_steps > 5)
        until(lambda: "Return so far" in text())
        assert NASTY in text()
        button("Pause").click()
        until(lambda: viewer.is_paused and "paused" in text())
        button("Reset").click()
        until(lambda: player.num_steps == 0)
        until(lambda: (scene().max(2) - scene().min(2)).max() > 60)  # the bodies have colours, and nothing else has
        still = scene()
        assert not moved(scene(), still)
        button("Step").click()
        until(lambda: player.num_steps == 1)
        ActionChains(browser).send_keys(*"nnnnnnnnn").perform()
        until(lambda: player.num_steps == 10)
        until(lambda: moved(scene(), still))

        before = player.data.qvel[0]
        ActionChains(browser).send_keys("l").send_keys("n").perform()  # to the right, as seen from here
        until(lambda: player.num_steps == 11)
        assert player.data.qvel[0] > before + 0.01

        first_tab = browser.current_window_handle
        browser.switch_to.new_window("tab")
        second_tab = browser.current_window_handle
        browser.switch_to.window(first_tab)
        browser.close()
        browser.switch_to.window(second_tab)
        until(lambda: not viewer.is_watched)
        assert thread.is_alive()
        browser.get(viewer.url)
        until(lambda: viewer.is_watched)
        until(lambda: browser.find_elements(By.XPATH, "//button[normalize-space()='Play']"))
        button("Play").click()
        until(lambda: player.num_steps > 13)

        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        asked += [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
        assert f"{viewer.url}/" in asked
        assert all(url.startswith((viewer.url, "data:", "blob:", "about:")) for url in asked)
    finally:
        browser.quit()
