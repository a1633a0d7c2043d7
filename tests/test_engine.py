"""MuJoCo's own engine under JAX, held against MuJoCo's functions on a single `MjData`."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import gorl
from gorl._env import load_environment
from gorl._env._engine import DERIVED, NotHandedBack

PLAYGROUND = sorted(name for name in gorl.environments() if not name.startswith("brax/") and name != "MultiGoal")


def load(name, **options):
    return load_environment(gorl.EnvConfig(name, implementation="mujoco", **options))


def single(model, data):
    """MuJoCo's data of one simulation at the state that MJX's data holds."""
    simulation = mujoco.MjData(model)
    for name in ("time", "qpos", "qvel", "act", "qacc_warmstart", "ctrl", "mocap_pos", "mocap_quat"):
        value = np.asarray(getattr(data, name))
        if name == "time":
            simulation.time = float(value)
        else:
            getattr(simulation, name)[:] = value
    return simulation


@pytest.mark.parametrize("name", PLAYGROUND)
def test_every_task_steps_as_mujoco_does_and_observes_as_itself(name):
    episodes = load(name)
    task = episodes.env.whole
    episode = episodes.start(jax.random.key(3))
    action = jax.random.uniform(jax.random.key(4), (episodes.action_size,), minval=-1, maxval=1)
    before = episode.state
    for _ in range(3):
        before, (episode, outcome) = episode.state, episodes.step(episode, action)
    simulation = single(task.mj_model, before.data)
    simulation.ctrl[:] = np.asarray(action)
    mujoco.mj_step(task.mj_model, simulation, task.n_substeps)
    after = episode.state.data
    for field in ("qpos", "qvel", "act"):
        np.testing.assert_allclose(getattr(after, field), getattr(simulation, field), rtol=2e-5, atol=2e-5)
    read = {
        field: jnp.asarray(np.reshape(getattr(simulation, field), np.shape(getattr(after, field))), jnp.float32)
        for field in DERIVED
        if not isinstance(getattr(after, field), NotHandedBack)
    }
    for field, value in read.items():
        scale = 1 + np.max(np.abs(value), initial=0.0)
        np.testing.assert_allclose(getattr(after, field) / scale, value / scale, atol=1e-4, err_msg=field)
    # The task's own functions see MuJoCo's numbers, as they are, in place of those of a physics step.
    oracle = after.replace(qpos=jnp.asarray(simulation.qpos), qvel=jnp.asarray(simulation.qvel), **read)
    observe = type(task)._get_obs
    np.testing.assert_allclose(episode.observation, observe(task, oracle, before.info), rtol=1e-3, atol=1e-3)
    assert np.isfinite(outcome.reward)


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
    sick, outcome = step(type(start)(start.state.replace(data=data), start.elapsed, start.over), actions)
    sick, outcome = step(sick, actions)
    well, _ = step(well, actions)
    assert outcome.terminated.tolist() == [False, False, True, False]
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
    from mujoco import mjx
    from mujoco_playground import dm_control_suite
    from mujoco_playground._src import mjx_env

    before = (mjx.step, mjx.forward, mjx.make_data, mjx_env.step)
    load("CheetahRun").start(jax.random.key(0))
    assert (mjx.step, mjx.forward, mjx.make_data, mjx_env.step) == before
    raw = dm_control_suite.load("CartpoleSwingup", config_overrides={"impl": "jax"})
    assert type(raw.reset.__globals__) is dict


def test_a_run_over_seeds_on_two_devices_is_that_of_each_seed_by_itself(tiny, assert_same):
    config = gorl.replace(tiny, {"env": gorl.EnvConfig("CartpoleSwingup", implementation="mujoco", episode_length=20)})
    keys = jax.random.split(jax.random.key(0), 2)
    *_, (_, both) = gorl.iterate(config, keys)
    *_, (_, first) = gorl.iterate(config, keys[0])
    assert_same(jax.tree.map(lambda leaf: leaf[0], both), first)
    assert np.isfinite(both.returns).all()
