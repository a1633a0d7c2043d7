"""What the benchmarks time, and how: programs, runs, processes, physics and rollouts."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from mujoco.batch import Batch

import gorl

GORL = (sys.executable, "-m", "gorl_cli")
Measurement = TypeVar("Measurement")


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """A function compiled for its arguments, and the seconds of tracing and compiling."""
    began = time.perf_counter()
    run = eqx.filter_jit(function).lower(*arguments).compile()  # pyright: ignore[reportFunctionMemberAccess]
    return run, time.perf_counter() - began


def once(function: Callable[..., Any], *arguments: Any) -> float:
    """The seconds of one call, until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def median_seconds(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    """The median seconds of several calls, after one that is not counted."""
    once(function, *arguments)
    return statistics.median(once(function, *arguments) for _ in range(repeats))


def timed(
    config: gorl.Config, start: jax.Array | gorl.TrainState
) -> Iterator[tuple[gorl.ScheduleStep, gorl.TrainState, float]]:
    """The steps of a run's schedule, each with the state after it and its seconds.

    The seconds of the first step include compiling, for all phases: nothing compiles while later steps are timed.
    """
    last = time.perf_counter()
    gorl.precompile(config, start)
    for step, state in gorl.iterate(config, start):
        jax.block_until_ready(state)
        yield step, state, time.perf_counter() - last
        last = time.perf_counter()


def timed_process(*command: str, **options: Any) -> tuple[str, float]:
    """What a process printed, and its seconds from start to end. A process that fails ends the benchmark."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, **options)
    took = time.perf_counter() - began
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}; its output is above.")
    return done.stdout, took


def in_turns(
    runs: dict[str, Callable[[], Measurement]],
    repeats: int,
    leave: Callable[[dict[str, list[Measurement]]], None] = lambda _: None,
) -> dict[str, list[Measurement]]:
    """Measures several things in turns, as a machine is not equally fast all the time.

    After each measurement, `leave` gets all so far, so that a benchmark that is stopped leaves them.
    """
    found: dict[str, list[Measurement]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
            leave(found)
    return found


def physics_program(
    env: gorl.EpisodicEnv, num_envs: int, num_steps: int
) -> tuple[Callable[..., Any], tuple[Any, ...], float]:
    """Random actions in a jitted scan: a compiled function, its arguments, and the seconds of compiling.

    It starts where episodes start, and returns their last states and the mean reward of each step.
    """

    def run(start: gorl.EpisodeState, key: jax.Array) -> tuple[gorl.EpisodeState, jax.Array]:
        def step(episode: gorl.EpisodeState, key: jax.Array) -> tuple[gorl.EpisodeState, jax.Array]:
            actions = jax.random.uniform(key, (num_envs, env.action_size), minval=-1, maxval=1)
            episode, result = jax.vmap(env.step)(episode, actions)
            return episode, jnp.mean(result.reward)

        return jax.lax.scan(step, start, jax.random.split(key, num_steps))

    keys = jax.random.split(jax.random.key(0), num_envs)
    start, compiling = compiled(jax.vmap(env.start), keys)
    arguments = (start(keys), jax.random.key(1))
    program, more = compiled(run, *arguments)
    return program, arguments, compiling + more


def engine_seconds(config: gorl.EnvConfig, env: gorl.EpisodicEnv, num_envs: int, num_steps: int) -> float | None:
    """The seconds that MuJoCo's engine by itself takes for control steps of a task under random controls.

    It starts where episodes start, so that it meets the same contacts. No environment on this engine can be faster.
    `None` if something else simulates the environment.
    """
    task: Any = env.env.whole
    by_default = config.implementation is None and jax.default_backend() == "cpu"
    if not (by_default or config.implementation == "mujoco") or not hasattr(task, "mjx_model"):
        return None
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), num_envs))
    batch = Batch(task.mj_model, num_envs, gorl.internal.num_cores())
    for name in ("qpos", "qvel", "qacc_warmstart"):
        batch.bind(name)[...] = np.asarray(getattr(states.data, name))
    controls = batch.bind("ctrl")
    random = np.random.default_rng(0).uniform(-1, 1, (num_steps, *controls.shape))
    if hasattr(task, "_default_pose"):  # a robot, whose actions move the targets of its joints from a pose
        random = np.asarray(task._default_pose) + task._config.action_scale * random
    began = time.perf_counter()
    for of_step in random:
        controls[...] = of_step
        batch.step(nstep=task.n_substeps)
    return time.perf_counter() - began


def fresh_policy(
    config: gorl.Config,
    env: gorl.EpisodicEnv,
    decoder: gorl.AbstractDecoderConfig | None = None,
    *,
    is_fitted: bool = True,
) -> gorl.Policy:
    """A policy with random networks. It acts through the config's decoder or the given one, or through none if that is
    not fitted."""
    encoder_key, decoder_key, noise_key = jax.random.split(jax.random.key(0), 3)
    sizes = (env.observation_size, env.action_size)
    seen = gorl.RunningStatistics.of(jax.random.normal(noise_key, (1000, env.observation_size)))
    made = (decoder or config.decoder).init(seen, env.action_size, decoder_key)
    encoder = config.learner.encoder(config.learner.init(*sizes, encoder_key))
    return gorl.Policy(encoder, gorl.StagedDecoder(made, jnp.asarray(is_fitted)), *sizes)


def rollout_program(
    config: gorl.Config, env: gorl.EpisodicEnv, policy: gorl.Policy
) -> tuple[Callable[..., Any], tuple[Any, ...], gorl.Experience, float]:
    """The rollout of one iteration of PPO: a compiled function, its arguments, in which episodes have started, the
    experience of the rollout before, and the seconds of compiling."""
    learner, training = config.learner, env.in_training
    assert isinstance(learner, gorl.PPO)

    def act(
        policy: gorl.Policy, rollout_state: gorl.RolloutState, key: jax.Array
    ) -> tuple[gorl.RolloutState, gorl.Experience]:
        return gorl.rollout(training, policy, rollout_state, learner.num_unrolls, learner.unroll_length, key)

    key, rollout_state = jax.random.key(1), gorl.RolloutState.empty(training, learner.num_envs, jax.random.key(5))
    program, compiling = compiled(act, policy, rollout_state, key)
    rollout_state, _ = program(policy, rollout_state, key)
    rollout_state, experience = program(policy, rollout_state, key)  # the first call starts all episodes
    return program, (policy, rollout_state, key), experience, compiling
