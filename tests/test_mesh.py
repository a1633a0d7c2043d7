"""Whole runs whose environments are shared by devices, against the same runs on one device."""

import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from quick import quick_environment

import gorl
from gorl._env import load_environment
from gorl._evaluation import play_episodes
from gorl._rollout import RolloutState, rollout

# Measured: 2e-7 after two stages. A difference grows with every gradient step, in some runs faster.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

SHORT = {
    "learner.num_envs": 8,
    "learner.unroll_length": 4,
    "learner.num_unrolls": 1,
    "learner.policy_width": 4,
    "learner.policy_depth": 1,
    "learner.value_width": 4,
    "learner.value_depth": 1,
    "evaluation_episodes": 4,
    "evaluation_interval": 64,
}


@pytest.fixture(scope="module")
def key():
    return jax.random.key(3)


@pytest.fixture(scope="module")
def two():
    return jax.make_mesh((2,), ("envs",))


def short(method, **changes):
    """Two iterations of a method on episodes that end at different times."""
    config = gorl.preset(gorl.EnvConfig("MultiGoal", episode_length=6), method=method)
    return gorl.replace(config, {**SHORT, "stage_steps": (64,) * config.num_stages, **changes})


def after_steps(config, key, count, mesh=None):
    """The state after some steps of a run."""
    for _, (_, state) in zip(range(count), gorl.iterate(config, key, mesh=mesh), strict=False):
        last = state
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), last)


@pytest.fixture(scope="module")
def whole(tiny, key, two):
    """A run of two stages: on two devices, and on one."""
    return [list(gorl.iterate(tiny, key, mesh=mesh)) for mesh in (two, None)]


def test_a_run_of_two_stages_is_the_same_but_for_rounding(whole, assert_same):
    ours, theirs = (jax.device_put(steps[-1][1], jax.devices()[0]) for steps in whole)
    assert jnp.isfinite(theirs.fits.validation_loss).all()
    assert_same(ours, theirs, **CLOSE)


def test_each_device_has_environments_of_its_own_and_all_else(whole):
    for _, state in whole[0]:
        for leaf in jax.tree.leaves(state.rollout_state):
            assert [shard.data.shape[0] for shard in leaf.addressable_shards] == [8, 8]
        for leaf in jax.tree.leaves((state.learner_state, state.decoder, state.best)):
            assert [shard.data.shape for shard in leaf.addressable_shards] == [leaf.shape] * 2


def test_both_devices_hold_the_same_networks(whole):
    for leaf in jax.tree.leaves(whole[0][-1][1].learner_state):
        one, other = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(one, other)


def test_a_run_goes_on_with_another_number_of_devices(tiny, whole, assert_same):
    half = len(whole[0]) // 2
    *_, (_, last) = gorl.iterate(tiny, whole[0][half][1], mesh=jax.make_mesh((1, 1), ("seeds", "envs")))
    assert_same(last, whole[1][-1][1], **CLOSE)


def test_train_takes_a_mesh_and_says_everything_once(tiny, key, two, whole, assert_same):
    records = []
    result = gorl.train(tiny, key, records.append, mesh=two)
    jax.effects_barrier()
    expected = gorl.finish(tiny, whole[1][-1][1])
    assert_same(jax.device_put(result, jax.devices()[0]), expected, **CLOSE)
    assert len(records) == result.curve.returns.shape[0] + 1


@pytest.mark.parametrize("method", ["sac", "reppo", "fpo"])
def test_other_learners_learn_the_same(method, key, two, assert_same):
    changes = {
        "sac": {"learner.buffer_size": 64, "learner.batch_size": 4, "learner.learning_starts": 8},
        "reppo": {"learner.num_minibatches": 2, "learner.num_epochs": 2},
    }.get(method, {"learner.num_minibatches": 2, "learner.num_epochs": 2})
    config = short(method, **changes)
    # An evaluation and two iterations.
    ours, theirs = (after_steps(config, key, 3, mesh) for mesh in (two, None))
    assert_same(ours.learner_state, theirs.learner_state, **CLOSE)
    # The start states that come next may be drawn earlier or later, but they are the same ones.
    assert_same(ours.rollout_state.episode, theirs.rollout_state.episode, **CLOSE)


def test_devices_talk_after_a_rollout_and_an_evaluation_and_never_within(make_policy, two):
    episodes, policy = load_environment(gorl.EnvConfig("MultiGoal", episode_length=6)), make_policy(2, 2)

    def act(key):
        _, experience = rollout(episodes, policy, RolloutState.empty(episodes, 4, key), 2, 3, key)
        return experience, play_episodes(episodes, policy, key, 4).returns

    replicated = PartitionSpec()
    mesh = Mesh(two.devices, two.axis_names)
    sharded = jax.shard_map(act, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False)
    program = jax.jit(sharded).lower(jax.random.key(0)).compile().as_text()
    # A computation begins with its name at the start of a line; the loops are computations of their own.
    computations = re.split(r"\n(?=ENTRY|%|\w)", program)
    talking = [text for text in computations if re.search(r"= .* (all-gather|all-reduce)(-start)?\(", text)]
    assert [text.startswith("ENTRY") for text in talking] == [True]
    assert any(" while(" in text for text in talking)  # the rollout, which is a loop


EIGHT_DEVICES = """
import jax, numpy as np
import gorl
config = gorl.replace(gorl.preset(gorl.EnvConfig("MultiGoal", episode_length=6), method="ppo"), CHANGES)
keys = jax.random.split(jax.random.key(3))
states = []
for shape in ((1, 1), (1, 8), (2, 4)):
    devices = jax.devices()[: shape[0] * shape[1]]
    steps = gorl.iterate(config, keys, mesh=jax.make_mesh(shape, ("seeds", "envs"), devices=devices))
    for _ in range(3):
        _, state = next(steps)
    states.append(jax.tree.map(np.asarray, (state.learner_state, state.rollout_state.episode)))
for state in states[1:]:
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), states[0], state)
print("the same on", len(jax.devices()))
"""

PROCESSES = """
import hashlib, sys
import jax, numpy as np
port, num_processes, index, path = sys.argv[1:]
if int(num_processes) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(num_processes), int(index))
import gorl
config = gorl.replace(gorl.preset(gorl.EnvConfig("MultiGoal", episode_length=6), method="ppo"), CHANGES)
keys = jax.random.split(jax.random.key(3))
mesh = jax.make_mesh((2, 2), ("seeds", "envs"))
if int(num_processes) > 1:
    steps = gorl.iterate(config, keys, mesh=mesh)
    for _ in range(2):
        _, state = next(steps)
    gorl.save_state(path, state, config)
    jax.experimental.multihost_utils.sync_global_devices("saved")
    keys, _ = gorl.load_state(path, config)
*_, (_, state) = gorl.iterate(config, keys, mesh=mesh)
result = gorl.finish(config, state)
policy = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result.policy))
print("policy", hashlib.sha256(policy).hexdigest())
"""

PPO = {**SHORT, "stage_steps": (64,), "learner.num_minibatches": 2, "learner.num_epochs": 2}


def begin(program, *arguments, devices):
    """Begins a process with so many devices."""
    command = [sys.executable, "-c", program.replace("CHANGES", repr(PPO)), *map(str, arguments)]
    environment = quick_environment(JAX_NUM_CPU_DEVICES=str(devices))
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process):
    """The last line that a process printed."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out.splitlines()[-1]


def test_eight_devices_learn_the_same_as_one():
    assert output(begin(EIGHT_DEVICES, devices=8)) == "the same on 8"


def test_two_processes_are_one_process_with_as_many_devices_bit_for_bit(tmp_path):
    """They also save, and go on from what the first of them wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [begin(PROCESSES, port, 2, index, tmp_path / "state", devices=2) for index in range(2)]
    first, second = map(output, both)
    assert first.startswith("policy ")
    assert first == second == output(begin(PROCESSES, 0, 1, 0, tmp_path / "none", devices=4))


# --- Bad input. ---


@pytest.mark.parametrize(
    ("shape", "axes", "seeds", "message"),
    [
        ((2,), ("data",), 2, r"the mesh has an axis 'data': call its axes 'seeds' and 'envs'"),
        ((2,), ("seeds",), 3, r"2 devices along 'seeds', which do not divide the number of seeds, [31]: take 1 along"),
        ((1, 2), ("seeds", "envs"), 2, r"2 devices along 'envs', which do not divide learner.num_envs, 15: take 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, axes, seeds, message, tiny, compilations):
    key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), seeds)
    mesh = jax.make_mesh(shape, axes)
    config = gorl.replace(tiny, {"learner.num_envs": 15, "stage_steps": (750, 750), "learner.num_minibatches": 1})
    config = gorl.replace(config, {"evaluation_interval": 150})
    gorl.iterate(config, key)  # what the checks compute takes small programs
    compilations.clear()
    with pytest.raises(gorl.InputError, match=message):
        gorl.iterate(config, keys, mesh=mesh)
    with pytest.raises(gorl.InputError, match=message):
        gorl.train(config, key, mesh=mesh)
    assert not compilations


def test_a_mesh_that_leaves_out_a_process_is_refused(tiny, monkeypatch):
    mesh = jax.make_mesh((2,), ("envs",))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(gorl.InputError, match="the processes have 2, 0 devices in the mesh: give a mesh with equally"):
        gorl.iterate(tiny, jax.random.key(0), mesh=mesh)


def test_a_state_from_several_devices_goes_on_with_the_one_that_is_left(whole, tiny):
    state = whole[0][0][1]
    _, after = next(gorl.iterate(tiny, state))
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(after)} == {1}
