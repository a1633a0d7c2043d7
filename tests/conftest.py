"""What several test files share."""

import atexit
import contextlib
import functools
import io
import os
import shutil
import signal
import sys
import tempfile

from quick import OLDER_EMITTERS

# Before JAX is imported, and inherited by pytest's workers and the processes that tests begin. What has been compiled
# in one of them no other compiles again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gorl-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Not before threads that still compile have ended.
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("XLA_FLAGS", OLDER_EMITTERS)
os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # so that seeds can be spread over them

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy.special import expit

import gorl

# Nearly every test takes longer to compile than to run; `optimised` is for the others.
jax.config.update("jax_disable_most_optimizations", True)

# In the background of a script SIGINT is ignored, and would be in the processes that are to be stopped by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing of what the command line keeps between processes ends up in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _forgets_programs():
    """After each file its programs are unmapped: Linux ends a process with 65,530 mappings, a few for each program."""
    yield
    jax.clear_caches()


class CountingState(eqx.Module):
    obs: jax.Array  # where the episode started, and the steps since
    reward: jax.Array
    done: jax.Array


class Counting(eqx.Module):
    """Counts its steps and pays the number of each, so that every return says exactly which steps it is made of."""

    terminates_at: int = 1_000_000
    episode_length: int = 10

    @property
    def observation_size(self):
        return 2

    @property
    def action_size(self):
        return 1

    def reset(self, key):
        return CountingState(jnp.stack([jax.random.uniform(key), 0.0]), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        start, count = state.obs[0], state.obs[1] + 1
        return CountingState(jnp.stack([start, count]), count, (count >= self.terminates_at).astype(jnp.float32))


@pytest.fixture(scope="session")
def counting():
    """The class of an environment in which everything that an episode should do can be counted by hand."""
    return Counting


@pytest.fixture(scope="session")
def tiny():
    """Two stages of five iterations on the built-in environment: compiling it takes far longer than running it."""
    return gorl.Config(
        env=gorl.EnvConfig("MultiGoal", episode_length=20),
        learner=gorl.PPO(
            num_envs=16,
            unroll_length=5,
            num_unrolls=2,
            num_minibatches=2,
            num_epochs=2,
            policy_width=8,
            policy_depth=1,
            value_width=8,
            value_depth=1,
            reward_scale=1.0,
        ),
        decoder=gorl.FlowMatching(width=8, depth=1, num_steps=2),
        refinement=gorl.Refinement(num_episodes=8, num_validation_episodes=2, batch_size=20, num_epochs=3),
        stage_steps=(800, 800),
        evaluation_interval=320,
        evaluation_episodes=4,
    )


@pytest.fixture(scope="session")
def make_policy():
    """Makes a policy with random weights large enough that what it does depends on what it sees."""

    @functools.cache
    @eqx.filter_jit
    def make(observation_size, action_size, *, fitted=True, plain=False, seed=0):
        encoder_key, decoder_key, noise_key = jax.random.split(jax.random.key(seed), 3)
        learner = gorl.PPO(policy_width=16, policy_depth=1, value_width=1, value_depth=1)
        statistics = gorl.RunningStatistics.of(jax.random.normal(noise_key, (100, observation_size)))
        encoder = learner.encoder(learner.init(observation_size, action_size, encoder_key))
        decoder = gorl.FlowMatching(width=16, depth=1, num_steps=4).init(statistics, action_size, decoder_key)
        networks = (encoder.network, decoder.velocity)
        networks = jax.tree.map(lambda weights: weights + 0.3 * jax.random.normal(noise_key, weights.shape), networks)
        encoder, decoder = eqx.tree_at(lambda pair: (pair[0].network, pair[1].velocity), (encoder, decoder), networks)
        staged = gorl.IdentityDecoder() if plain else gorl.StagedDecoder(decoder, jnp.asarray(fitted))
        return gorl.Policy(encoder, staged, observation_size, action_size)

    return make


@pytest.fixture(scope="session")
def written_out():
    """Writes a perceptron with SiLU activations out in numpy and double precision."""

    def write(network):
        layers = [(np.float64(layer.weight), np.float64(layer.bias)) for layer in network.layers]

        def run(inputs):
            for weight, bias in layers[:-1]:
                inputs = weight @ inputs + bias
                inputs = inputs * expit(inputs)
            weight, bias = layers[-1]
            return weight @ inputs + bias

        return run

    return write


@pytest.fixture(scope="session")
def written_out_field(written_out):
    """Writes a conditional field with four frequencies out at one normalised observation."""

    def write(field, normalised):
        run = written_out(field.network)

        def evaluate(point, time):
            angles = time * np.array([1.0, 2.0, 4.0, 8.0])
            return run(np.concatenate([normalised, point, np.cos(angles), np.sin(angles)]))

        return evaluate

    return write


@pytest.fixture(scope="session")
def shaken():
    """Adds a little noise to every number of a module, so that biases are not zero either."""

    def shake(module):
        draw = np.random.default_rng(0).normal
        return jax.tree.map(lambda leaf: leaf + jnp.asarray(draw(0, 0.1, leaf.shape), jnp.float32), module)

    return shake


@pytest.fixture
def optimised():
    """What the test compiles is optimised, as it is for users: for tests that run longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def unchecked():
    """Lets values of the wrong type through to the library, as they come when nobody checks types at run time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def compilations():
    """A list that grows by one whenever XLA compiles something."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def assert_same():
    """Asserts that two pytrees of arrays are equal bit for bit, or within a tolerance; random keys are compared too."""

    def plain(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    def check(one, other, rtol=0.0, atol=0.0):
        one, other = (jax.tree.map(plain, eqx.filter(tree, eqx.is_array)) for tree in (one, other))
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
            equal = jnp.allclose(left, right, rtol, atol, equal_nan=True)
            assert equal, f"{jax.tree_util.keystr(path)}: {left} is not {right}"

    return check


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `gorl` with arguments and returns the exit code, the standard output and the standard error."""

    from gorl_cli._app import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gorl", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture(scope="session")
def output_of():
    """Runs `gorl` with arguments for several tests, which it has to end well, and returns the standard output."""

    from gorl_cli._app import main

    def run(*arguments):
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            patch.setattr(sys, "argv", ["gorl", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code
        return output.getvalue()

    return run


@pytest.fixture(scope="session")
def finished_run(tiny, make_policy, tmp_path_factory):
    """A run of the seeds 5 to 7 on MultiGoal as `gorl train` leaves it, whose policies are random and see something."""
    from gorl_cli._process import as_json
    from gorl_cli._run import Run

    sizes = {"policy_width": 16, "policy_depth": 1, "value_width": 1, "value_depth": 1}
    config = gorl.replace(
        tiny,
        {
            **{f"learner.{name}": value for name, value in sizes.items()},
            "decoder": gorl.FlowMatching(width=16, depth=1, num_steps=4),
        },
    )
    run = Run(tmp_path_factory.mktemp("finished") / "run", config, "gorl-flow", 5, 3, 30.0)
    run.directory.mkdir()
    run.create()
    one = make_policy(2, 2)
    scales = jnp.array([0.8, 1.0, 1.2])
    policies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)
    policies = eqx.tree_at(
        lambda p: p.encoder.network.layers[0].weight,
        policies,
        scales[:, None, None] * one.encoder.network.layers[0].weight,
    )
    gorl.save_policy(run.policies_file, policies, config)
    points = [(0, 0), (0, 800), (1, 800), (1, 1600)]
    rows = [f"{seed},{stage},{steps},{seed * steps}" for stage, steps in points for seed in run.seed_numbers]
    run.curve_file.write_text("\n".join(["seed,stage,env_steps,return_mean", *rows, ""]))
    run.summary_file.write_text(
        as_json({"env_steps": run.env_steps, "best_policy_return": {"5": 1.0, "6": 3.0, "7": float("nan")}})
    )
    return run
