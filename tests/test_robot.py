"""Tasks of one's own on a MuJoCo model."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import gorl
from gorl._env import load_environment

# Two joints that touch nothing, a motor without limits, a target that moves by mocap, and one number to remember.
ARM = """
<mujoco>
  <size nuserdata="1"/>
  <option timestep="0.005"/>
  <worldbody>
    <body name="target" mocap="true"><geom type="sphere" size="0.02" contype="0" conaffinity="0"/></body>
    <body name="upper">
      <joint name="shoulder" axis="0 1 0" damping="0.05"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02" contype="0" conaffinity="0"/>
      <body name="lower" pos="0 0 -0.3">
        <joint name="elbow" axis="0 1 0" damping="0.05"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02" contype="0" conaffinity="0"/>
        <site name="hand" pos="0 0 -0.3"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor name="shoulder" joint="shoulder" ctrllimited="true" ctrlrange="-1 3"/>
    <motor name="elbow" joint="elbow"/>
  </actuator>
  <sensor><framepos name="hand" objtype="site" objname="hand"/></sensor>
</mujoco>
"""


class Reach(gorl.MujocoEnv):
    def __init__(self, model=ARM, **options):
        super().__init__(model, **{"control_timestep": 0.02, "episode_length": 30, **options})

    def start(self, data, key):
        joints, place = jax.random.split(key)
        target = jax.random.uniform(place, (1, 3), minval=-0.4, maxval=0.4)
        return data.replace(qpos=jax.random.uniform(joints, (2,), minval=-1.0, maxval=1.0), mocap_pos=target)

    def observe(self, data):
        return jnp.concatenate([data.qpos, data.qvel, data.mocap_pos[0], data.userdata])

    def reward(self, data, action):
        return -jnp.linalg.norm(self.sensor(data, "hand") - data.mocap_pos[0]) - 0.01 * jnp.sum(action**2)

    def terminates(self, data):
        return data.qpos[0] > 2.0

    def control(self, data, action):
        return super().control(data, action).replace(userdata=data.userdata + 1)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A directory whose modules can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def trajectory(episodes, actions):
    def step(episode, action):
        after, result = episodes.step(episode, action)
        return after, (after, result)

    start = episodes.start(jax.random.key(1))
    return start, jax.jit(lambda start: jax.lax.scan(step, start, actions)[1])(start)


def test_it_steps_as_mujoco_does():
    episodes = load_environment(gorl.EnvConfig(Reach(), implementation="mujoco"))
    actions = jax.random.uniform(jax.random.key(0), (20, 2), minval=-1, maxval=1)
    start, (found, outcomes) = trajectory(episodes, actions)
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    data.qpos[:], data.mocap_pos[:] = start.state.data.qpos, start.state.data.mocap_pos
    for index, action in enumerate(np.asarray(actions, np.float64)):
        data.ctrl[:] = [-1 + (action[0] + 1) * 2, action[1]]  # the first goes to its range, the second has none
        mujoco.mj_step(model, data, 4)
        seen = np.concatenate([data.qpos, data.qvel, data.mocap_pos[0], [index + 1]])
        np.testing.assert_allclose(found.observation[index], seen, rtol=1e-4, atol=1e-4)
        earned = -np.linalg.norm(data.sensordata - data.mocap_pos[0]) - 0.01 * np.sum(action**2)
        np.testing.assert_allclose(outcomes.reward[index], earned, rtol=1e-4, atol=1e-4)
        assert bool(outcomes.terminated[index]) == bool(data.qpos[0] > 2.0)


def test_all_implementations_agree():
    actions = jax.random.uniform(jax.random.key(0), (15, 2), minval=-1, maxval=1)
    found = []
    for implementation in ("mujoco", "jax"):
        episodes = load_environment(gorl.EnvConfig(Reach(), implementation=implementation))
        _, (after, outcomes) = trajectory(episodes, actions)
        found.append((after.observation, outcomes))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), *found)


def test_it_steps_without_being_loaded(assert_same):
    task = Reach()
    state = jax.jit(task.reset)(jax.random.key(1))
    after = jax.jit(task.step)(state, jnp.ones(2))
    episodes = load_environment(gorl.EnvConfig(task))
    assert_same(after.obs, episodes.step(episodes.start(jax.random.key(1)), jnp.ones(2))[0].observation)


def test_models_come_as_text_files_specs_and_models(tmp_path):
    (tmp_path / "arm.xml").write_text(ARM)
    spec = mujoco.MjSpec.from_string(ARM)
    model = mujoco.MjModel.from_xml_string(ARM)
    for given in (ARM, tmp_path / "arm.xml", str(tmp_path / "arm.xml"), spec, model):
        task = Reach(given, physics_timestep=0.01)
        assert task.num_substeps == 2
        assert task.mj_model.opt.timestep == 0.01
        assert (task.observation_size, task.action_size) == (8, 2)
    assert model.opt.timestep == 0.005


def test_it_trains_by_name_renders_and_exports(modules, tiny):
    (modules / "my_arm.py").write_text("import test_robot\n\nclass MyReach(test_robot.Reach):\n    pass\n")
    config = gorl.replace(tiny, {"env": gorl.EnvConfig("my_arm:MyReach", episode_length=10)})
    assert gorl.Config.from_json(config.to_json()) == config
    result = gorl.train(config, jax.random.key(0))
    assert np.isfinite(result.curve.mean_return).all()
    assert len(gorl.export_stablehlo(result.policy)) > 0
    trajectories = gorl.play(config.env, result.policy, jax.random.key(1))
    assert np.isfinite(trajectories.reward).all()


def test_a_simulation_that_blows_up_ends_its_episode(assert_same):
    episodes = load_environment(gorl.EnvConfig(Reach()))
    start = jax.jit(jax.vmap(episodes.start))(jax.random.split(jax.random.key(0), 3))
    sick = eqx.tree_at(lambda episode: episode.state.data.qvel, start, start.state.data.qvel.at[1].set(jnp.inf))
    step = jax.jit(jax.vmap(episodes.step))
    (well, _), (after, result) = (step(episode, jnp.zeros((3, 2))) for episode in (start, sick))
    assert result.terminated.tolist() == [False, True, False]
    assert np.isfinite(result.reward).all()
    assert np.isfinite(after.observation).all()
    for index in (0, 2):
        assert_same(*(jax.tree.map(lambda leaf, at=index: leaf[at], episode) for episode in (well, after)))


PLAYGROUND_TASK = """
import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
from ml_collections import config_dict
from mujoco import mjx
from mujoco_playground._src import mjx_env

XML = '''<mujoco><worldbody><body><joint name="hinge" axis="0 1 0"/>
<geom type="capsule" fromto="0 0 0 0 0 -0.3" size="0.02"/></body></worldbody>
<actuator><motor joint="hinge" ctrlrange="-1 1" ctrllimited="true"/></actuator></mujoco>'''


class Pole(mjx_env.MjxEnv):
    def __init__(self):
        super().__init__(config_dict.create(ctrl_dt=0.02, sim_dt=0.01))
        self._mj_model = mujoco.MjModel.from_xml_string(XML)
        self._mj_model.opt.timestep = self.sim_dt
        self._mjx_model = mjx.put_model(self._mj_model, impl="jax")

    def reset(self, rng):
        data = mjx_env.make_data(self._mj_model, qpos=jax.random.uniform(rng, (1,)), impl="jax")
        data = mjx.forward(self._mjx_model, data)
        return mjx_env.State(data, self._see(data), jnp.zeros(()), jnp.zeros(()), {}, {})

    def step(self, state, action):
        data = mjx_env.step(self._mjx_model, state.data, action, self.n_substeps)
        return state.replace(data=data, obs=self._see(data), reward=self._pay(data))

    def _see(self, data):
        return jnp.concatenate([data.qpos, data.qvel])

    def _pay(self, data):
        return data.SENSOR.ravel()[0]

    xml_path = property(lambda self: "")
    action_size = property(lambda self: self._mj_model.nu)
    mj_model = property(lambda self: self._mj_model)
    mjx_model = property(lambda self: self._mjx_model)
"""


def test_a_task_written_for_playgrounds_class_gets_the_engine(modules):
    (modules / "own_pole.py").write_text(PLAYGROUND_TASK.replace("SENSOR", "xpos"))
    actions = jax.random.uniform(jax.random.key(0), (15, 1), minval=-1, maxval=1)
    found = []
    for implementation in (None, "jax"):
        episodes = load_environment(gorl.EnvConfig("own_pole:Pole", implementation=implementation))
        _, (after, outcomes) = trajectory(episodes, actions)
        found.append((after.observation, outcomes))
        assert (type(episodes.env.whole) is sys.modules["own_pole"].Pole) == (implementation == "jax")
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), *found)


def test_a_task_that_reads_what_only_mjx_has_stays_with_mjx_unless_asked(modules):
    (modules / "own_pole_of_mjx.py").write_text(PLAYGROUND_TASK.replace("SENSOR", "qfrc_inverse"))
    with pytest.raises(gorl.InputError, match=r"does not hand data\.qfrc_inverse back.*xpos.*implementation to jax"):
        load_environment(gorl.EnvConfig("own_pole_of_mjx:Pole", implementation="mujoco"))
    episodes = load_environment(gorl.EnvConfig("own_pole_of_mjx:Pole"))
    assert type(episodes.env.whole) is sys.modules["own_pole_of_mjx"].Pole


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/arm.xml", r"there is no file nowhere/arm\.xml: give the path"),
        (ARM.replace('type="sphere"', 'type="sfere"'), r"this MuJoCo model does not compile: .*'sfere'.*line 6"),
        (ARM.replace("</worldbody>", ""), r"this MuJoCo model does not compile: .*[Ll]ine"),
        (
            ARM.replace("<worldbody>", '<asset><mesh name="hull" file="hull.stl"/></asset><worldbody>'),
            r"this MuJoCo model does not compile: .*hull\.stl",
        ),
        (3, r"int is no MuJoCo model: give an MJCF file"),
    ],
)
def test_a_model_that_is_none(model, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gorl.InputError, match=message):
        Reach(model)
    if isinstance(model, str) and "<" in model:  # and by the name of its file
        (tmp_path / "arm.xml").write_text(model)
        with pytest.raises(gorl.InputError, match=message.replace("this MuJoCo model", r"the MuJoCo model arm\.xml")):
            Reach("arm.xml")


def test_time_steps_that_do_not_go_together():
    with pytest.raises(gorl.InputError, match=r"control time step of Reach, 0\.012 s.*physics time step, 0\.005 s"):
        Reach(control_timestep=0.012)


@pytest.mark.parametrize(
    ("method", "function", "message"),
    [
        ("observe", lambda self, data: data.xpos, r"Wrong\.observe must return one vector.*\(4, 3\).*jnp\.ravel"),
        ("observe", lambda self, data: data.qfrc_inverse, r"does not hand data\.qfrc_inverse back.*sensordata"),
        ("observe", lambda self, data: data.contact.dist, r"does not hand data\.contact back.*sensordata"),
        ("reward", lambda self, data, action: action, r"Wrong\.reward must return one number.*\(2,\).*a sum"),
        ("terminates", lambda self, data: data.qpos > 1, r"Wrong\.terminates must return one number.*\(2,\)"),
        ("reward", lambda self, data, action: self.sensor(data, "hnd")[0], r"'hnd': did you mean 'hand'"),
        ("start", lambda self, data, key: data.replace(qpos=jnp.zeros(3)), r"Wrong\.start.*qpos.*\(3,\).*\(2,\)"),
        ("control", lambda self, data, action: data.replace(ctrl=action[0]), r"Wrong\.control.*ctrl.*\(\).*\(2,\)"),
    ],
)
def test_a_method_that_returns_the_wrong_thing(method, function, message):
    wrong = type("Wrong", (Reach,), {method: function})
    with pytest.raises(gorl.InputError, match=message):
        load_environment(gorl.EnvConfig(wrong()))


def test_an_implementation_that_does_not_fit(counting):
    with pytest.raises(gorl.InputError, match=r"warp takes a CUDA device, and JAX sees none: leave it out"):
        load_environment(gorl.EnvConfig(Reach(), implementation="warp"))
    with pytest.raises(gorl.InputError, match=r"warp takes a CUDA device, and JAX sees none: leave it out"):
        load_environment(gorl.EnvConfig("PointMass", implementation="warp"))
    with pytest.raises(gorl.InputError, match=r"implementation is for tasks .* Counting is none: leave it out"):
        load_environment(gorl.EnvConfig(counting(), implementation="mujoco"))


# --- Commands, terms and a pose. ---


class Follow(Reach):
    """Pays what it was asked for, so that every reward says which command an episode had."""

    def __init__(self, model=ARM, **options):
        commands = {"far": gorl.Command(0.1, 1.0, "m"), "high": gorl.Command(-2.0, -1.0)}
        super().__init__(model, **{"commands": commands, "command_period": 0.06, **options})

    def observe(self, data):
        return jnp.concatenate([data.qpos, self.command(data), data.userdata[:1]])

    def reward(self, data, action):
        far, high = self.command(data)
        return {"far": far, "high": 2 * high}

    def terminates(self, data):
        return {"left": data.qpos[0] > 1.2, "right": data.qpos[0] < -1.2}

    def measure(self, data):
        return {"steps": data.userdata[0]}

    def control(self, data, action):
        count = data.userdata[:1] + 1
        after = gorl.MujocoEnv.control(self, data, action)
        return after.replace(userdata=jnp.concatenate([count, data.userdata[1:]]))


def played(task, num_steps=12, key=0, action=0.0):
    episodes = load_environment(gorl.EnvConfig(task))
    actions = jnp.full((num_steps, 2), action)
    start = eqx.filter_jit(episodes.start)(jax.random.key(key))
    states, results = eqx.filter_jit(
        lambda start: jax.lax.scan(lambda e, a: trajectory_step(episodes, e, a), start, actions)
    )(start)[1]
    observations = np.concatenate([np.asarray(start.observation)[None], np.asarray(states.observation)])
    return observations, jax.tree.map(np.asarray, results)


def trajectory_step(episodes, episode, action):
    after, result = episodes.step(episode, action)
    return after, (after, result)


def test_commands_are_drawn_anew_after_their_period_and_seen_before_they_pay():
    observations, results = played(Follow())
    commands = observations[:, 2:4]
    changed = np.any(commands[1:] != commands[:-1], axis=1)
    np.testing.assert_array_equal(changed, [False, False, True] * 4)  # 0.06 s are three steps
    assert (commands[:, 0] >= 0.1).all()
    assert (commands[:, 0] <= 1).all()
    # A step is paid by the command that was seen before it.
    np.testing.assert_allclose(results.terms["reward/far"], commands[:-1, 0], rtol=1e-6)
    np.testing.assert_allclose(results.terms["reward/high"], 2 * commands[:-1, 1], rtol=1e-6)
    np.testing.assert_allclose(results.reward, commands[:-1] @ [1, 2], rtol=1e-5)
    np.testing.assert_array_equal(observations[:, 4], np.arange(13))  # the task's own number stays its own


def test_commands_differ_by_episode_and_stay_without_a_period():
    first, _ = played(Follow(command_period=None))
    other, _ = played(Follow(command_period=None), key=1)
    assert (first[:, 2:4] == first[0, 2:4]).all()
    assert (other[0, 2:4] != first[0, 2:4]).all()


def test_commands_can_be_fixed():
    task = load_environment(gorl.EnvConfig(Follow(), commands="far=0.5"))
    state = task.start(jax.random.key(0))
    assert state.observation[2] == 0.5
    observations, _ = played(Follow().commanded("far=0.5 high=-2"))
    np.testing.assert_array_equal(observations[:, 2:4], [[0.5, -2.0]] * 13)
    with pytest.raises(gorl.InputError, match="no command of Follow is called 'fra': did you mean 'far'"):
        load_environment(gorl.EnvConfig(Follow(), commands="fra=0.5"))
    with pytest.raises(gorl.InputError, match=r"env\.commands is for a gorl\.MujocoEnv that declares commands"):
        load_environment(gorl.EnvConfig(gorl.MultiGoal(), commands="far=0.5"))
    with pytest.raises(gorl.InputError, match=r"PointMass declares no commands: leave env\.commands out"):
        load_environment(gorl.EnvConfig("PointMass", commands="far=0.5"))


def test_a_task_with_commands_takes_no_compiled_model():
    with pytest.raises(gorl.InputError, match=r"takes no mujoco\.MjModel: give its MJCF file or a mujoco\.MjSpec"):
        Follow(mujoco.MjModel.from_xml_string(ARM))
    spec = mujoco.MjSpec.from_string(ARM)
    assert Follow(spec).mj_model.nuserdata == Follow(spec).mj_model.nuserdata == 3
    assert spec.nuserdata == 1  # the user's own stays as it is


def test_terms_and_reasons_are_columns_of_the_curve():
    config = gorl.Config(
        env=gorl.EnvConfig(Follow()),
        learner=gorl.PPO(
            num_envs=8,
            unroll_length=10,
            num_unrolls=1,
            num_minibatches=2,
            num_epochs=1,
            policy_width=8,
            policy_depth=1,
            value_width=8,
            value_depth=1,
            on_actions=True,
        ),
        decoder=gorl.Identity(),
        stage_steps=(160,),
        evaluation_interval=80,
        evaluation_episodes=16,
    )
    records = []
    result = jax.tree.map(np.asarray, gorl.train(config, jax.random.key(0), records.append))
    metrics = result.curve.metrics
    assert {name for name in metrics if "/" in name} == {
        "measure/steps",
        "reward/far",
        "reward/high",
        "terminated/left",
        "terminated/right",
    }
    np.testing.assert_allclose(
        metrics["reward/far"] + metrics["reward/high"], result.curve.returns.mean(axis=-1), rtol=1e-4
    )
    shares = metrics["terminated/left"] + metrics["terminated/right"]
    assert ((shares > 0) & (shares <= 1)).all()
    # The mean of 1 to n is (n + 1) / 2, and few episodes last to their limit of 30.
    assert ((metrics["measure/steps"] > 1) & (metrics["measure/steps"] <= 15.5)).all()
    assert records[0].metrics["reward/far"] == pytest.approx(metrics["reward/far"][0])


def test_an_action_moves_away_from_the_pose():
    keyframe = '<keyframe><key name="bent" qpos="0 0" ctrl="2 -0.5"/></keyframe>'
    model = ARM.replace("</mujoco>", keyframe + "</mujoco>")
    for pose in ("bent", (2.0, -0.5)):
        task = Reach(model, pose=pose, action_scale=0.5)
        episodes = load_environment(gorl.EnvConfig(task))
        after, _ = episodes.step(episodes.start(jax.random.key(0)), jnp.array([0.4, -1.0]))
        np.testing.assert_allclose(after.state.data.ctrl, [2.2, -1.0], rtol=1e-6)
    after, _ = episodes.step(after, jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(after.state.data.ctrl, [3.0, -0.5], rtol=1e-6)  # within the actuator's range
    with pytest.raises(gorl.InputError, match="no keyframe of the model is called 'bnt': did you mean 'bent'"):
        Reach(model, pose="bnt")
    with pytest.raises(gorl.InputError, match=r"the pose of Reach has the shape \(3,\): .* each of the 2 actuators"):
        Reach(model, pose=(1.0, 2.0, 3.0))
