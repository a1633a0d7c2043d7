"""MuJoCo's own engine under JAX, held against MuJoCo's functions on a single `MjData`."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from mujoco_playground import dm_control_suite
from mujoco_playground._src import mjx_env

import gorl
from gorl._env import _playground, load_environment
from gorl._env._engine import DERIVED, NotHandedBack, _Simulator
from gorl._env._mujoco import _rewired

# A quadruped, a humanoid and a hand stand for the robots, which take seconds each.
ROBOTS = ["Go1JoystickFlatTerrain", "H1JoystickGaitTracking", "LeapCubeReorient"]


def raw(name):
    """A task of Playground as it comes."""
    return _playground.load(gorl.EnvConfig(name, implementation="jax"))


def load(name, **options):
    return load_environment(gorl.EnvConfig(name, implementation="mujoco", **options))


class Single:
    """Physics by `mujoco.mj_step` on one `MjData`: what the engine is held against. Not for compiled programs."""

    def __init__(self, model):
        self.model = model

    def make_data(self):
        return mjx.make_data(self.model, impl="jax")

    def forward(self, data):
        return self.step(data, 0)

    def step(self, data, num_steps):
        simulation = mujoco.MjData(self.model)
        for name in ("qpos", "qvel", "act", "qacc_warmstart", "ctrl", "xfrc_applied", "mocap_pos", "mocap_quat"):
            getattr(simulation, name)[:] = np.asarray(getattr(data, name))
        simulation.time = float(data.time)
        if num_steps == 0:
            mujoco.mj_forward(self.model, simulation)
        else:
            mujoco.mj_step(self.model, simulation, num_steps)
        names = ("time", "qpos", "qvel", "act", "qacc_warmstart", *DERIVED)
        found = {name: np.reshape(getattr(simulation, name), np.shape(getattr(data, name))) for name in names}
        return data.replace(**{name: jnp.asarray(value, jnp.float32) for name, value in found.items()})


@pytest.mark.parametrize("name", [*dm_control_suite.ALL_ENVS, *ROBOTS])
def test_every_task_steps_as_mujoco_does_and_observes_and_rewards_as_itself(name):
    task = raw(name)
    episodes = load(name)
    oracle = _rewired(task, Single(task.mj_model))
    actions = jax.random.uniform(jax.random.key(4), (4, task.action_size), minval=-1, maxval=1)

    @jax.jit
    def run(key):
        def step(episode, action):
            return episodes.step(episode, action)[0], episode.state

        return jax.lax.scan(step, episodes.start(key), actions)

    episode, befores = run(jax.random.key(3))
    after, before = episode.state, jax.tree.map(lambda leaf: leaf[-1], befores)
    found = oracle.step(before.replace(data=oracle_data(task, before.data)), actions[-1])
    for field in ("qpos", "qvel", "act"):
        np.testing.assert_allclose(getattr(after.data, field), getattr(found.data, field), rtol=2e-5, atol=2e-5)
    for field in DERIVED:
        if not isinstance(getattr(after.data, field), NotHandedBack):
            value = getattr(found.data, field)
            scale = 1 + np.max(np.abs(value), initial=0.0)
            np.testing.assert_allclose(getattr(after.data, field) / scale, value / scale, atol=1e-4, err_msg=field)
    for part, expected in zip(jax.tree.leaves(after.obs), jax.tree.leaves(found.obs), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after.reward, found.reward, rtol=1e-3, atol=1e-4)
    assert bool(after.done) == bool(found.done)


def oracle_data(task, data):
    """Data of MJX itself in the state that data of the engine holds."""
    held = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    held = {name: value for name, value in held.items() if not isinstance(value, NotHandedBack)}
    return Single(task.mj_model).make_data().replace(**held)


def test_the_bits_are_the_same_for_any_number_of_threads_and_any_split(monkeypatch, assert_same):
    from gorl._env import _engine

    episodes = load("HopperStand")
    states = jax.jit(jax.vmap(episodes.env.reset))(jax.random.split(jax.random.key(0), 6))
    actions = jax.random.uniform(jax.random.key(1), (6, episodes.action_size), minval=-1, maxval=1)

    def stepped(threads, parts):
        monkeypatch.setattr(_engine, "_num_threads", lambda: threads)
        step = jax.jit(jax.vmap(lambda state, action: episodes.env.step(state, action)))
        rows = [slice(6 * part // parts, 6 * (part + 1) // parts) for part in range(parts)]
        found = [step(jax.tree.map(lambda leaf, rows=rows_: leaf[rows], states), actions[rows_]) for rows_ in rows]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)

    one = stepped(1, 1)
    for threads, parts in ((2, 1), (3, 1), (1, 2), (2, 3)):
        assert_same(one, stepped(threads, parts))


def test_a_scan_and_a_loop_give_the_same_bits(assert_same):
    episodes = load("CartpoleSwingup")
    start = jax.jit(episodes.env.reset)(jax.random.key(0))
    actions = jax.random.uniform(jax.random.key(1), (20, 1), minval=-1, maxval=1)
    scanned, _ = jax.jit(lambda s: jax.lax.scan(lambda s, a: (episodes.env.step(s, a), None), s, actions))(start)
    state, step = start, jax.jit(episodes.env.step)
    for action in actions:
        state = step(state, action)
    assert_same(scanned, state)


def test_without_contact_it_is_mjx_within_1e_4_over_50_steps():
    one, other = load("CartpoleSwingup"), load_environment(gorl.EnvConfig("CartpoleSwingup", implementation="jax"))
    actions = jax.random.uniform(jax.random.key(1), (50, 1), minval=-1, maxval=1)
    found = []
    for episodes in (one, other):
        episode = episodes.start(jax.random.key(0))
        found.append(jax.lax.scan(lambda e, a, s=episodes.step: (s(e, a)[0], e.observation), episode, actions)[1])
    np.testing.assert_allclose(*found, atol=1e-4)


def test_what_blows_up_ends_its_episode_and_touches_no_other(capfd, tmp_path, monkeypatch, assert_same):
    monkeypatch.chdir(tmp_path)
    episodes = load("HopperStand")
    start = jax.jit(jax.vmap(episodes.start))(jax.random.split(jax.random.key(0), 4))
    step = jax.jit(jax.vmap(episodes.step))
    actions = jnp.zeros((4, episodes.action_size))
    well, _ = step(start, actions)
    exploding = start.state.data.qvel.at[2].set(1e9)
    data = start.state.data.replace(qvel=exploding)
    sick, result = step(type(start)(start.state.replace(data=data), start.step_count, start.done), actions)
    sick, result = step(sick, actions)
    well, _ = step(well, actions)
    assert result.terminated.tolist() == [False, False, True, False]
    assert np.isnan(sick.observation[2]).all()
    others = np.array([0, 1, 3])
    assert_same(*(jax.tree.map(lambda leaf: leaf[others], episode) for episode in (sick, well)))
    assert not list(tmp_path.iterdir())  # MuJoCo has left no log
    assert "WARNING" not in "".join(capfd.readouterr())


def test_what_is_not_handed_back_is_refused_by_name():
    data = load("CartpoleSwingup").env.reset(jax.random.key(0)).data
    for use in (lambda: data.cdof + 1, lambda: 1 + data.cdof, lambda: jnp.sum(data.cdof), lambda: data.cdof[0]):
        with pytest.raises(gorl.InputError, match=r"does not hand data\.cdof back.*sensordata.*implementation to jax"):
            use()


def test_playground_itself_is_left_as_it_was():
    before = (mjx.step, mjx.forward, mjx.make_data, mjx_env.step)
    load("CheetahRun").start(jax.random.key(0))
    assert (mjx.step, mjx.forward, mjx.make_data, mjx_env.step) == before
    assert type(raw("CartpoleSwingup").reset.__globals__) is dict


def test_a_run_over_seeds_on_two_devices_is_the_one_on_one_device(tiny, assert_same):
    env = gorl.EnvConfig("CartpoleSwingup", implementation="mujoco", episode_length=20)
    config = gorl.replace(tiny, {"env": env, "decoder": gorl.Identity(), "stage_steps": (800,)})
    keys = jax.random.split(jax.random.key(0), 2)
    *_, (_, both) = gorl.iterate(config, keys)
    assert len(both.returns.devices()) == 2
    with jax.default_device(jax.devices()[0]):
        *_, (_, on_one) = gorl.iterate(config, keys)
    # A map over one seed is compiled to other fusions than one over two: numbers may be rounded otherwise.
    assert_same(both, on_one, rtol=1e-4, atol=1e-4)
    assert np.isfinite(both.returns).all()


def test_simulations_of_many_models_are_not_all_kept():
    def falls(gravity):
        text = (
            f"<mujoco><option gravity='0 0 {gravity}'/><worldbody><body><freejoint/><geom size='1'/></body></worldbody>"
        )
        model = mujoco.MjModel.from_xml_string(f"{text}</mujoco>")
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
        return _Simulator(model, 1, [], []), np.zeros((4, size), np.float32)

    def times(simulator, rows):
        after = np.zeros((4, 1), np.float32)
        simulator.run(rows, None, [after], 2, 1)
        return after.tolist()

    simulators = [falls(-index) for index in range(20)]
    for simulator, rows in simulators:
        rows[:, 4] = 1.0  # time, position, and a rotation that is one
        assert times(simulator, rows) == [[pytest.approx(0.004)]] * 4
    warm = [bool(simulator._idle) for simulator, _ in simulators]
    assert warm == [False] * 4 + [True] * 16
    assert times(*simulators[0]) == [[pytest.approx(0.004)]] * 4  # which is made again
