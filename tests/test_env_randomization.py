"""What differs from episode to episode: against models that MuJoCo compiles with the drawn values."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx
from mujoco_playground import locomotion
from mujoco_playground._src import mjx_env

import gorl
from gorl._env import load_environment

WALKER = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="torso" pos="0 0 .35">
      <freejoint/>
      <inertial mass="3" pos="0 0 0" diaginertia=".02 .03 .04"/>
      <geom type="box" size=".2 .1 .05"/>
      <body name="front" pos=".2 0 0">
        <joint name="front" axis="0 1 0" damping=".3" armature=".02" frictionloss=".1"/>
        <inertial mass=".4" pos="0 0 -.1" diaginertia=".002 .002 .001"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/>
      </body>
      <body name="back" pos="-.2 0 0">
        <joint name="back" axis="0 1 0" damping=".2" armature=".01" frictionloss=".1"/>
        <inertial mass=".5" pos="0 0 -.1" diaginertia=".002 .002 .001"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/>
      </body>
    </body>
  </worldbody>
  <actuator><position joint="front" kp="20" kv=".5"/><position joint="back" kp="20" kv=".5"/></actuator>
</mujoco>"""
CONSTANTS = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0")


class Walker(gorl.MujocoEnv):
    def __init__(self):
        super().__init__(WALKER, control_timestep=0.01, episode_length=20)

    def start(self, data, key):
        return data.replace(qpos=data.qpos.at[7:].set(jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)))

    def observe(self, data):
        return {"state": jnp.concatenate([data.qpos[2:], data.qvel]), "privileged_state": data.qpos[:3]}

    def reward(self, data, action):
        return data.qpos[0]


class Slippery(Walker):
    def randomize(self, model, key):
        return {"geom_friction": model.geom_friction.at[0, 0].set(jax.random.uniform(key, minval=0.1, maxval=0.2))}


def double_friction(model, key):
    return {"geom_friction": 2 * model.geom_friction}


def of_another_shape(model, key):
    return {"geom_friction": model.geom_friction[:1]}


def of_a_size(model, key):
    return {"geom_size": model.geom_size}


def load(randomization, env=None, **options):
    return load_environment(gorl.EnvConfig(env or Walker(), randomization=randomization, **options))


def compiled(fields):
    """MuJoCo's model of the same text with the drawn values, compiled anew."""
    spec = mujoco.MjSpec.from_string(WALKER)
    value = {name: np.asarray(drawn, np.float64) for name, drawn in fields.items()}
    for index, body in enumerate(spec.bodies):
        if index == 0:
            continue
        body.mass = value["body_mass"][index] if "body_mass" in value else body.mass
        body.inertia = value["body_inertia"][index] if "body_inertia" in value else body.inertia
        body.ipos = value["body_ipos"][index] if "body_ipos" in value else body.ipos
    for index, geom in enumerate(spec.geoms):
        geom.friction = value["geom_friction"][index] if "geom_friction" in value else geom.friction
    for index, joint in enumerate(spec.joints[1:]):
        joint.damping[0] = value["dof_damping"][6 + index] if "dof_damping" in value else joint.damping[0]
        joint.armature = value["dof_armature"][6 + index] if "dof_armature" in value else joint.armature
        joint.frictionloss = value["dof_frictionloss"][6 + index] if "dof_frictionloss" in value else joint.frictionloss
    for index, actuator in enumerate(spec.actuators):
        actuator.gainprm = value["actuator_gainprm"][index] if "actuator_gainprm" in value else actuator.gainprm
        actuator.biasprm = value["actuator_biasprm"][index] if "actuator_biasprm" in value else actuator.biasprm
    if "opt.gravity" in value:
        spec.option.gravity = value["opt.gravity"]
    return spec.compile()


NAMED = {
    "friction=0.2:0.4": {"geom_friction"},
    "mass=0.5:2": {"body_mass", "body_inertia"},
    "load=1:2": {"body_mass", "body_inertia"},
    "center_of_mass=-0.05:0.05": {"body_ipos"},
    "gains=0.5:1.5": {"actuator_gainprm", "actuator_biasprm"},
    "damping=2:3": {"dof_damping"},
    "armature=2:3": {"dof_armature"},
    "friction_loss=2:3": {"dof_frictionloss"},
    "gravity=0.5:0.6": {"opt.gravity"},
}


@pytest.mark.parametrize("text", [*NAMED, " ".join(NAMED)])
def test_the_physics_is_that_of_a_model_compiled_with_the_drawn_values(text):
    env = load(text, implementation="mujoco")
    episode = env.start(jax.random.key(1))
    fields = episode.state.fields
    assert set(fields) - set(CONSTANTS) == set().union(*(names for part, names in NAMED.items() if part in text))
    model, nominal = compiled(fields), mujoco.MjModel.from_xml_string(WALKER)
    for name in fields:
        holder, attribute = (model.opt, "gravity") if name == "opt.gravity" else (model, name)
        np.testing.assert_allclose(fields[name], getattr(holder, attribute), rtol=1e-5, atol=1e-6, err_msg=name)
    data, other = mujoco.MjData(model), mujoco.MjData(nominal)
    for each in (data, other):
        each.qpos[:], each.qvel[:] = episode.state.data.qpos, episode.state.data.qvel
        each.qacc_warmstart[:] = episode.state.data.qacc_warmstart
    for index in range(20):
        action = jnp.array([0.5, -0.5]) * (-1) ** (index // 5)
        episode, _ = env.step(episode, action)
        for each, its in ((data, model), (other, nominal)):
            each.ctrl[:] = action
            mujoco.mj_step(its, each, 2)
    np.testing.assert_allclose(episode.state.data.qpos, data.qpos, atol=2e-4)
    assert np.abs(data.qpos - other.qpos).max() > 1e-3  # what was drawn matters
    assert np.any(np.abs(np.asarray(episode.state.data.qpos) - other.qpos) > 1e-3)


def test_a_density_changes_mass_and_inertia_by_one_factor_for_each_body():
    fields = load("mass=0.5:2").start(jax.random.key(0)).state.fields
    nominal = mujoco.MjModel.from_xml_string(WALKER)
    factors = np.asarray(fields["body_mass"])[1:] / nominal.body_mass[1:]
    assert np.all((factors >= 0.5) & (factors <= 2))
    assert len(np.unique(factors)) == 3
    np.testing.assert_allclose(fields["body_inertia"][1:], factors[:, None] * nominal.body_inertia[1:], rtol=1e-6)


def test_each_episode_draws_anew_and_the_key_decides(assert_same):
    env = load("friction=0.2:2 mass=0.8:1.2")
    start = jax.jit(jax.vmap(env.start))
    keys = jax.random.split(jax.random.key(0), 5)
    several = start(keys).state.fields
    assert len(np.unique(np.asarray(several["geom_friction"][:, 0, 0]))) == 5
    assert_same(several, start(keys).state.fields)
    for index in (0, 3):
        alone = env.start(keys[index]).state.fields
        assert_same(alone, jax.tree.map(lambda leaf, index=index: leaf[index], several))


def test_mjx_and_the_engine_agree():
    """Without contacts, and as far as MJX goes."""
    found = []
    for implementation in ("mujoco", "jax"):
        env = load("mass=0.5:2 center_of_mass=-0.02:0.02 gains=0.5:1.5 gravity=0.1:0.1", implementation=implementation)
        episode = env.start(jax.random.key(1))
        for _ in range(5):
            episode, _ = env.step(episode, jnp.array([0.5, -0.5]))
        found.append((episode.state.data.qpos, episode.state.data.qvel, episode.state.fields))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), *found)


def test_playgrounds_own_randomiser_works_as_it_is():
    name = "Go1JoystickFlatTerrain"
    env = load_environment(gorl.EnvConfig(name, randomization="playground"))
    fields = env.start(jax.random.key(0)).state.fields
    task = env.env.whole
    theirs, axes = locomotion.get_domain_randomizer(name)(
        mjx.put_model(task.mj_model), jax.random.split(jax.random.key(9), 64)
    )
    varies = {path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(axes)}
    assert varies == set(fields) - set(CONSTANTS)
    for varied in varies:  # within what they draw
        drawn, spread = np.asarray(fields[varied]), np.asarray(getattr(theirs, varied))
        low, high = spread.min(axis=0), spread.max(axis=0)
        room = (high - low) / 4 + 1e-6
        assert np.all((drawn >= low - room) & (drawn <= high + room)), varied


def test_a_tasks_own_comes_first_and_what_is_asked_for_finds_it():
    own = load(None, Slippery()).start(jax.random.key(0)).state.fields["geom_friction"]
    assert 0.1 <= own[0, 0] <= 0.2
    doubled = load(f"{__name__}:double_friction", Slippery()).start(jax.random.key(0)).state.fields["geom_friction"]
    np.testing.assert_allclose(doubled, 2 * own, rtol=1e-6)
    nominal = load("nominal", Slippery()).start(jax.random.key(0)).state
    assert not hasattr(nominal, "fields")


def test_a_delayed_action_has_its_effect_later():
    late, now = load("delay=3", implementation="mujoco"), load(None, implementation="mujoco")
    actions = jax.random.uniform(jax.random.key(2), (8, 2), minval=-1, maxval=1)
    episode, other = late.start(jax.random.key(1)), now.start(jax.random.key(1))
    for index in range(8):
        episode, _ = late.step(episode, actions[index])
        other, _ = now.step(other, actions[index - 3] if index >= 3 else jnp.zeros(2))
        np.testing.assert_array_equal(episode.observation, other.observation)
    delays = jax.vmap(load("delay=0:2").start)(jax.random.split(jax.random.key(0), 60)).state.delay
    assert set(np.asarray(delays).tolist()) == {0, 1, 2}


def test_noise_is_on_what_the_policy_sees_alone():
    noisy, clean = load("noise=0.1"), load(None)
    keys = jax.random.split(jax.random.key(0), 400)
    seen, true = jax.vmap(noisy.start)(keys), jax.vmap(clean.start)(keys)
    difference = np.asarray(seen.observation - true.observation)
    assert difference.std() == pytest.approx(0.1, rel=0.05)
    assert abs(difference.mean()) < 0.01
    np.testing.assert_array_equal(seen.critic_observation, true.critic_observation)
    later, _ = jax.vmap(noisy.step)(seen, jnp.zeros((400, 2)))
    after, _ = jax.vmap(clean.step)(true, jnp.zeros((400, 2)))
    again = np.asarray(later.observation - after.observation)
    assert again.std() == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(difference.ravel(), again.ravel())[0, 1]) < 0.05


def test_pushes_are_horizontal_of_the_size_that_was_asked_for_and_one_in_five_seconds():
    pushed, still = load("push=2:3"), load(None)
    count = 4000
    keys = jax.random.split(jax.random.key(0), count)
    push, rest = (
        jax.vmap(lambda key, env=env: env.step(env.start(key), jnp.zeros(2))[0].state.data.qvel)(keys)
        for env in (pushed, still)
    )
    size = np.linalg.norm(np.asarray(push - rest)[:, :2], axis=1)
    was_pushed = size > 0.5
    expected = 0.01 / 5.0  # a control step over the time between two pushes
    assert abs(was_pushed.mean() - expected) < 4 * np.sqrt(expected / count)
    assert was_pushed.sum() >= 1
    assert np.all((size[was_pushed] > 1.5) & (size[was_pushed] < 3.2))  # friction has taken some of it


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("frictoin=0.5:1", "no randomization is called 'frictoin': did you mean 'friction'"),
        ("friction=1:0.5", "the range of friction=1:0.5 is upside down: write the smaller number first"),
        ("friction=much", "the randomization friction=much has no range: write friction=0.8:1.2"),
        ("friction=-1:1", "the range of friction=-1:1 begins at -1: friction must be positive"),
        ("mass=0:1", "mass must be positive"),
        ("delay=0:1.5", "is of whole control steps: write delay=0:2"),
        ("playgruond", "no randomization is called 'playgruond': did you mean 'playground'"),
        ("playground", "MuJoCo Playground does not randomise"),
        (f"{__name__}:of_a_size", "no field of the model that can vary is called 'geom_size'"),
        (f"{__name__}:of_another_shape", r"gives geom_friction the shape \(1, 3\), and this model's is \(4, 3\)"),
        ("no_such_module_here:draw", "no_such_module_here"),
    ],
)
def test_bad_input_is_one_sentence(text, sentence):
    with pytest.raises(gorl.InputError, match=sentence):
        load(text)


class Box(Walker):
    """A single body that moves freely, whose mass matrix MuJoCo compiles as a diagonal."""

    def __init__(self):
        body = '<body name="box"><freejoint/><geom type="box" size=".1 .1 .1"/></body>'
        gorl.MujocoEnv.__init__(self, f"<mujoco><worldbody>{body}</worldbody></mujoco>", control_timestep=0.01)

    def start(self, data, key):
        return data.replace(qvel=jax.random.normal(key, (6,)))

    action_size = 1

    def control(self, data, action):
        return data


def test_a_body_with_a_diagonal_mass_matrix_may_be_heavier_but_not_lopsided():
    env = load("mass=3", Box(), implementation="mujoco")
    episode = env.start(jax.random.key(0))
    model = Box().mj_model
    model.body_mass[1], model.body_inertia[1] = 3 * model.body_mass[1], 3 * model.body_inertia[1]
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    data.qvel[:] = episode.state.data.qvel
    for _ in range(10):
        episode, _ = env.step(episode, jnp.zeros(1))
        mujoco.mj_step(model, data, 5)
    np.testing.assert_allclose(episode.state.data.qvel, data.qvel, rtol=1e-4, atol=1e-5)
    with pytest.raises(gorl.InputError, match="the centre of mass of the body 'box' cannot vary"):
        load("center_of_mass=-0.1:0.1", Box())


@pytest.mark.skipif(mjx_env.MENAGERIE_PATH.exists(), reason="Playground has downloaded Menagerie here")
def test_a_randomiser_of_playground_that_lacks_files_says_so(capsys):
    with pytest.raises(gorl.InputError, match=r"randomiser of LeapCubeReorient reads files that this machine lacks"):
        load_environment(gorl.EnvConfig("LeapCubeReorient", randomization="playground"))
    with pytest.raises(gorl.InputError, match="MuJoCo Playground does not randomise H1JoystickGaitTracking"):
        load_environment(gorl.EnvConfig("H1JoystickGaitTracking", randomization="playground"))
    assert capsys.readouterr().out == ""


def test_what_cannot_be_randomised_says_so():
    with pytest.raises(gorl.InputError, match=r"env\.randomization is for MuJoCo's tasks, and MultiGoal is none"):
        load_environment(gorl.EnvConfig("MultiGoal", randomization="friction=0.5:1"))
    with pytest.raises(gorl.InputError, match="nothing of this model moves freely, so that it cannot be pushed"):
        load_environment(gorl.EnvConfig("CheetahRun", randomization="push=1:2"))
