"""A run as a Python loop over the steps of its schedule, for one seed or several."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ._backend import BackgroundCompiler, map_seeds, seed_sharding
from ._config import Config
from ._env import EpisodicEnv
from ._prepare import check_batch, check_key, check_memory, prepare
from ._schedule import Phase, Schedule, ScheduleStep, make_schedule
from ._state import Result, TrainState
from ._train import advance, init, phase_functions, result
from ._types import RandomKeys


def iterate(config: Config, start: RandomKeys | TrainState) -> Iterator[tuple[ScheduleStep, TrainState]]:
    """The same run as `gorl.train`, step by step, for whoever wants to watch it, stop it or save it.

    Stopped anywhere and continued from its last state, it goes on bit-identically. Each phase is a program of its own:
    the run begins when the first is compiled, and the others are compiled in the background.

    Several seeds are sharded over the devices of the process: as many on each, on as many devices as divide them.
    `jax.config.update("jax_num_cpu_devices", 4)` makes devices of four cores. The number of devices changes results by
    rounding only.

    **Arguments:**

    - `config`: what the run is.
    - `start`: a key from `jax.random.key`, or several (`jax.random.split(key, 8)`) for a run over seeds; or a state to
        continue from. With several, a number of the config may be a batch with one value for each.

    **Returns:**

    An iterator over the steps: each with the state after it. `gorl.finish` turns the last state into a `gorl.Result`.

    **Raises:**

    `gorl.InputError` as `gorl.train` does, and if the devices cannot hold the state of all seeds twice, as every step
    does.
    """
    config, env = _prepare(config, start)

    def steps() -> Iterator[tuple[ScheduleStep, TrainState]]:
        state, remaining = _begin(config, env, start)
        with _compiling(config, env, state, remaining) as programs:
            for step in remaining:
                phase = Phase(int(step.phase))
                programs.wait(phase)
                state = _advance_seeds(config, env, state, step, phase)
                yield step, state

    return steps()


def precompile(config: Config, start: RandomKeys | TrainState) -> None:
    """Compiles every program that `gorl.iterate` is going to run, and waits for it: for timing what comes after.

    **Arguments:**

    - `config`, `start`: as for `gorl.iterate`.

    **Raises:**

    `gorl.InputError` as `gorl.train` does.
    """
    config, env = _prepare(config, start)
    with _compiling(config, env, *_begin(config, env, start)) as programs:
        programs.wait_for_all()


def finish(config: Config, state: TrainState) -> Result:
    """The result of a run whose last state is `state`; before its last step, of the run so far.

    **Arguments:**

    - `config`: of the run.
    - `state`: as `gorl.iterate` gave it, of one seed or of several.

    **Raises:**

    `gorl.InputError` as `gorl.train` does.
    """
    config, _ = prepare(config)
    check_batch(config, state.key)
    found = _result_of_seeds(config, state)
    return found if seed_sharding(state.key.size) is None else jax.device_put(found, jax.local_devices()[0])


def state_shapes(config: Config, key: RandomKeys) -> TrainState:
    """The shapes and types of the state of a run, in place of arrays. Traces, and compiles nothing."""
    config, env = prepare(config)
    return eqx.filter_eval_shape(_init_seeds, config, env, key)


def _prepare(config: Config, start: RandomKeys | TrainState) -> tuple[Config, EpisodicEnv]:
    """As `prepare`, and checks that a run can begin or go on there."""
    config, env = prepare(config)
    if isinstance(start, TrainState):
        check_batch(config, start.key)
        check_memory(start)
        return config, env
    check_key(start, batch_allowed=True)
    check_batch(config, start)
    # What cannot be trained says so now, not at the first step.
    check_memory(eqx.filter_eval_shape(_init_seeds, config, env, start))
    return config, env


def _begin(config: Config, env: EpisodicEnv, start: RandomKeys | TrainState) -> tuple[TrainState, Schedule]:
    """The state that a run begins or goes on with, on its devices, and the steps that remain."""
    if isinstance(start, TrainState):
        sharding = seed_sharding(start.key.size)
        state = start if sharding is None else jax.device_put(start, sharding)
    else:
        state = _init_seeds(config, env, start)
    # All seeds have done equally many steps.
    return state, make_schedule(config).from_index(int(np.max(state.index)))


def _compiling(config: Config, env: EpisodicEnv, state: TrainState, remaining: Schedule) -> BackgroundCompiler:
    """Compiles the program of each phase that remains, in the order in which they come."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def lower(step: ScheduleStep, phase: Phase) -> Any:
        with jax.default_device(device):  # another thread does not have it from this one
            return _advance_seeds.lower(config, env, state, step, phase)  # pyright: ignore[reportFunctionMemberAccess]

    _, first_of_each = np.unique(remaining.steps.phase, return_index=True)
    firsts = jax.tree.map(lambda column: column[np.sort(first_of_each)], remaining)
    phases = [(step, Phase(int(step.phase))) for step in firsts]
    return BackgroundCompiler({phase: functools.partial(lower, step, phase) for step, phase in phases})


@eqx.filter_jit
def _init_seeds(config: Config, env: EpisodicEnv, keys: RandomKeys) -> TrainState:
    schedule = make_schedule(config)
    return _over_seeds(lambda config, key: init(config, env, schedule, key), config, keys, keys)


@eqx.filter_jit
def _advance_seeds(config: Config, env: EpisodicEnv, state: TrainState, step: ScheduleStep, phase: Phase) -> TrainState:
    of_phase = phase_functions()[phase]
    return _over_seeds(
        lambda config, state, step: advance(of_phase, config, env, state, step), config, state.key, state, step
    )


@eqx.filter_jit
def _result_of_seeds(config: Config, state: TrainState) -> Result:
    schedule = make_schedule(config)
    return _over_seeds(lambda config, state: result(config, schedule, state), config, state.key, state)


def _over_seeds(
    function: Callable[..., PyTree], config: Config, keys: RandomKeys, of_seeds: PyTree, *shared: PyTree
) -> PyTree:
    """`function(config, of_seed, *shared)` for each seed, and for each value where the config has one for each seed."""
    if keys.ndim == 0:
        return function(config, of_seeds, *shared)
    batched, scalar = eqx.partition(config, jax.tree.map(lambda leaf: leaf.ndim > 0, config))

    def one_seed(mapped: tuple[Config, PyTree], unmapped: tuple[Config, PyTree]) -> PyTree:
        (config, of_seed), (rest_of_config, shared) = mapped, unmapped
        return function(eqx.combine(config, rest_of_config), of_seed, *shared)

    return map_seeds(one_seed, keys.size, (batched, of_seeds), (scalar, shared))
