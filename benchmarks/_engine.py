"""MuJoCo's own engine by itself: the limit of every rollout that it simulates."""

import time
from typing import Any

import jax
import numpy as np
from mujoco.batch import Batch

import gorl

from ._report import num_cores


def is_by_engine(config: gorl.EnvConfig, env: gorl.EpisodicEnv) -> bool:
    """Whether an environment is simulated by MuJoCo's own engine."""
    by_default = config.implementation is None and jax.default_backend() == "cpu"
    task: Any = env.env.whole
    return (by_default or config.implementation == "mujoco") and hasattr(task, "mjx_model")


def engine_seconds(env: gorl.EpisodicEnv, num_envs: int, num_steps: int) -> float:
    """The seconds that MuJoCo's batch takes for so many control steps of a task of Playground under random controls.

    It begins where episodes begin, so that it sees the contacts that they see; and hands nothing back.
    """
    task: Any = env.env.whole
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), num_envs))
    batch = Batch(task.mj_model, num_envs, num_cores() or 1)
    for name in ("qpos", "qvel", "qacc_warmstart"):
        batch.bind(name)[...] = np.asarray(getattr(states.data, name))
    controls = batch.bind("ctrl")
    random = np.random.default_rng(0).uniform(-1, 1, (num_steps, *controls.shape))
    began = time.perf_counter()
    for of_step in random:
        controls[...] = of_step
        batch.step(nstep=task.n_substeps)
    return time.perf_counter() - began
