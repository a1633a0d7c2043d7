"""MuJoCo Warp, which also runs without a CUDA device, if slowly: what it computes, under vmap and restarts."""

import json
import subprocess
import sys

import pytest
from quick import quick_environment

# Warp is imported by processes that see a CUDA device only, so that this needs one of its own.
SCRIPT = """
import json
import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import gorl
from gorl._env import _implementation, restart

_implementation._has_cuda = lambda: True
XML = '''
<mujoco><option timestep="0.01" cone="pyramidal"/><worldbody>
  <geom name="floor" type="plane" size="5 5 0.1"/>
  <body name="ball" pos="0 0 0.2"><joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/>
    <geom name="ball" type="sphere" size="0.1" mass="1"/></body>
</worldbody><actuator><motor joint="x"/><motor joint="z" gear="20"/></actuator></mujoco>'''


class Ball(gorl.MujocoEnv):
    def __init__(self):
        super().__init__(XML, control_timestep=0.02)

    def start(self, data, key):
        return data.replace(qpos=jax.random.uniform(key, (2,), minval=-0.08, maxval=0.1))

    def observe(self, data):
        return jnp.concatenate([data.qpos, data.qvel, data.xpos[1]])

    def reward(self, data, action):
        return data.qpos[0]


env = gorl.load_environment(gorl.EnvConfig(Ball(), implementation="warp", episode_length=7))


def rollout(key):
    def step(episode, inputs):
        key, action = inputs
        after, result = env.step(episode, action)
        return restart(env.start(key), after), (after.observation, episode.state.data.qpos, episode.state.data.qvel)

    keys, actions = jax.random.split(key, 20), jax.random.uniform(key, (20, 2), minval=-1, maxval=1)
    return jax.lax.scan(step, env.start(key), (keys, actions))[1], actions


keys = jax.random.split(jax.random.key(0), (2, 3))
(seen, qpos, qvel), actions = jax.tree.map(np.asarray, jax.jit(jax.vmap(jax.vmap(rollout)))(keys))
model = mujoco.MjModel.from_xml_string(XML)
expected = np.zeros_like(seen)
for index in np.ndindex(seen.shape[:3]):
    data = mujoco.MjData(model)
    data.qpos, data.qvel, data.ctrl = qpos[index], qvel[index], actions[index]
    mujoco.mj_step(model, data, 2)
    expected[index] = np.concatenate([data.qpos, data.qvel, data.xpos[1]])

short = env.env.whole.physics
short._max_constraints = 1  # the ball on the floor takes four
low = jnp.array([0.0, -0.12])
lost = jax.jit(lambda z: short.step(short.make_data().replace(qpos=low.at[1].set(z)), 1).qpos)
short_of = jax.vmap(lost)(jnp.array([-0.12, 1.0]))

# The masses differ from simulation to simulation, and with them what a force does.
masses = jnp.array([1.0, 2.0, 5.0])
physics = env.env.whole.physics
push = physics.make_data().replace(qpos=jnp.array([0.0, 0.5]), ctrl=jnp.array([1.0, 1.0]))


def velocity(mass):
    fields = {"body_mass": jnp.array([0.0, mass]), "body_inertia": jnp.array([[0.0] * 3, [0.004 * mass] * 3])}
    return physics.with_fields(fields).step(push, 2).qvel


random = np.asarray(jax.jit(jax.vmap(velocity))(masses))
edited = []
for mass in masses:
    model.body_mass[1], model.body_inertia[1] = mass, 0.004 * mass
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    data.qpos, data.ctrl = push.qpos, push.ctrl
    mujoco.mj_step(model, data, 2)
    edited.append(data.qvel.copy())

json.dump(
    {
        "of_masses": float(np.abs(random - edited).max()),
        "masses_matter": float(np.ptp(random[:, 0])),
        "difference": float(np.abs(seen - expected).max()),
        "touches": float(np.mean(seen[..., 1] < -0.09)),
        "short": np.isnan(np.asarray(short_of)).all(axis=1).tolist(),
        "finite": np.isfinite(np.asarray(short_of)).all(axis=1).tolist(),
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=quick_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)  # and nothing else has been printed


def test_each_step_is_mujocos_under_vmap_of_vmap_with_restarts(found):
    assert found["difference"] < 1e-4
    assert 0.1 < found["touches"] < 0.9  # with the floor and without


def test_fields_of_the_model_differ_from_simulation_to_simulation(found):
    assert found["of_masses"] < 1e-5
    assert found["masses_matter"] > 1e-3


def test_a_simulation_whose_constraints_have_no_place_becomes_nan_and_the_others_do_not(found):
    assert found["short"] == [True, False]
    assert found["finite"] == [False, True]
