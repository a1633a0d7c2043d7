"""A run as a Python loop over the steps of its schedule, for one seed or several."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._backend import BackgroundCompiler, map_seeds, on_mesh, on_one_device, shardings
from ._config import Config
from ._decoder import AbstractDecoder
from ._env import EpisodicEnv
from ._errors import InputError
from ._patience import is_left_out
from ._prepare import check_batch, check_decoder, check_key, check_memory, mesh_of, prepare
from ._rollout import RolloutState
from ._schedule import Phase, Schedule, ScheduleStep, make_schedule
from ._state import Result, TrainState
from ._train import advance, init, phase_functions, result
from ._types import RandomKeys


def iterate(
    config: Config,
    start: RandomKeys | TrainState,
    *,
    decoder: AbstractDecoder | None = None,
    mesh: Mesh | None = None,
) -> Iterator[tuple[ScheduleStep, TrainState]]:
    """The same run as `gorl.train`, step by step, for whoever wants to watch it, stop it or save it.

    Stopped anywhere and continued from its last state, it goes on bit-identically. Steps that `config.stage_patience`
    leaves out are not among them. Each phase is a program of its own:
    the run begins when the first is compiled, and the others are compiled in the background.

    Several seeds are sharded over a mesh of the devices of the process: as many on each, on as many devices as divide
    them. GPUs that are left share the environments of each seed, and the rows of every batch.
    `jax.config.update("jax_num_cpu_devices", 4)` makes devices of four cores. The mesh changes results by rounding
    only.

    **Arguments:**

    - `config`: what the run is.
    - `start`: a key from `jax.random.key`, or several (`jax.random.split(key, 8)`) for a run over seeds; or a state to
        continue from. With several, a number of the config may be a batch with one value for each.
    - `decoder`: of the first stage, as for `gorl.train`; all seeds share it. A state has its own.
    - `mesh`: another mesh, such as `jax.make_mesh((2, 4), ("seeds", "envs"))`. A state goes on with any mesh.

    **Returns:**

    An iterator over the steps: each with the state after it. `gorl.finish` turns the last state into a `gorl.Result`.

    **Raises:**

    `gorl.InputError` as `gorl.train` does, and if the devices cannot hold the state of all seeds twice, as every step
    does.
    """
    config, env, decoder, mesh = _prepare(config, start, decoder, mesh)

    def steps() -> Iterator[tuple[ScheduleStep, TrainState]]:
        state, remaining = _begin(config, env, mesh, start, decoder)
        with _compiling(config, env, mesh, state, remaining) as programs:
            for step in remaining:
                if config.stage_patience is not None and bool(_is_left_out(config, state, step)):
                    continue
                phase = Phase(int(step.phase))
                programs.wait(phase)
                state = _advance_seeds(config, env, mesh, state, step, phase)
                yield step, state

    return steps()


def precompile(
    config: Config,
    start: RandomKeys | TrainState,
    *,
    decoder: AbstractDecoder | None = None,
    mesh: Mesh | None = None,
) -> None:
    """Compiles every program that `gorl.iterate` is going to run, and waits for it: for timing what comes after.

    **Arguments:**

    - `config`, `start`, `decoder`, `mesh`: as for `gorl.iterate`.

    **Raises:**

    `gorl.InputError` as `gorl.train` does.
    """
    config, env, decoder, mesh = _prepare(config, start, decoder, mesh)
    with _compiling(config, env, mesh, *_begin(config, env, mesh, start, decoder)) as programs:
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
    state, _ = _apart(state)
    return _result_of_seeds(config, on_one_device(state))


def state_shapes(config: Config, key: RandomKeys) -> TrainState:
    """The shapes and types of the state of a run, in place of arrays. Traces, and compiles nothing."""
    config, env = prepare(config)
    return eqx.filter_eval_shape(_init_seeds, config, env, None, key)


def _prepare(
    config: Config, start: RandomKeys | TrainState, decoder: AbstractDecoder | None, mesh: Mesh | None
) -> tuple[Config, EpisodicEnv, AbstractDecoder | None, Mesh | None]:
    """As `prepare`, and checks that a run can begin or go on there."""
    config, env = prepare(config)
    if isinstance(start, TrainState):
        if decoder is not None:
            raise InputError("a decoder was given, and the state to continue from has its own: leave decoder out.")
        check_batch(config, start.key)
        mesh = mesh_of(config, start.key, mesh)
        check_memory(start, mesh)
        return config, env, None, mesh
    check_key(start, batch_allowed=True)
    check_batch(config, start)
    decoder = check_decoder(config, env, decoder)
    mesh = mesh_of(config, start, mesh)
    # What cannot be trained says so now, not at the first step.
    check_memory(eqx.filter_eval_shape(_init_seeds, config, env, None, start, decoder), mesh)
    return config, env, decoder, mesh


def _begin(
    config: Config,
    env: EpisodicEnv,
    mesh: Mesh | None,
    start: RandomKeys | TrainState,
    decoder: AbstractDecoder | None,
) -> tuple[TrainState, Schedule]:
    """The state that a run begins or goes on with, on its devices, and the steps that remain."""
    if not isinstance(start, TrainState):
        state = _init_seeds(config, env, mesh, start, decoder)
    elif mesh is None:
        state = on_one_device(start)
    else:
        placed = map(on_mesh, _apart(start), shardings(mesh, has_seeds=start.key.ndim > 0))
        state = _together(*placed)
    # All seeds have done equally many steps.
    return state, make_schedule(config).from_index(int(np.max(on_one_device(state.index))))


def _compiling(
    config: Config, env: EpisodicEnv, mesh: Mesh | None, state: TrainState, remaining: Schedule
) -> BackgroundCompiler:
    """Compiles the program of each phase that remains, in the order in which they come."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def lower(step: ScheduleStep, phase: Phase) -> Any:
        with jax.default_device(device):  # another thread does not have it from this one
            lower = _advance_seeds.lower  # pyright: ignore[reportFunctionMemberAccess]
            return lower(config, env, mesh, state, step, phase)

    _, first_of_each = np.unique(remaining.steps.phase, return_index=True)
    firsts = jax.tree.map(lambda column: column[np.sort(first_of_each)], remaining)
    phases = [(step, Phase(int(step.phase))) for step in firsts]
    return BackgroundCompiler({phase: functools.partial(lower, step, phase) for step, phase in phases})


@eqx.filter_jit
def _init_seeds(
    config: Config, env: EpisodicEnv, mesh: Mesh | None, keys: RandomKeys, decoder: AbstractDecoder | None = None
) -> TrainState:
    schedule = make_schedule(config)

    def one_seed(config: Config, key: RandomKeys, decoder: AbstractDecoder | None) -> TrainState:
        return init(config, env, schedule, key, decoder)

    return _over_seeds(one_seed, config, mesh, keys, keys, decoder)


@eqx.filter_jit
def _advance_seeds(
    config: Config, env: EpisodicEnv, mesh: Mesh | None, state: TrainState, step: ScheduleStep, phase: Phase
) -> TrainState:
    of_phase = phase_functions()[phase]

    def one_seed(config: Config, state: TrainState, step: ScheduleStep) -> TrainState:
        return advance(of_phase, config, env, state, step)

    return _over_seeds(one_seed, config, mesh, state.key, state, step)


@eqx.filter_jit
def _is_left_out(config: Config, state: TrainState, step: ScheduleStep) -> Bool[Array, ""]:
    schedule = make_schedule(config)

    def of_seed(evaluated_at: Int[Array, " evaluations"], returns: Float[Array, "evaluations episodes"]) -> Array:
        return is_left_out(config, schedule, evaluated_at, returns, step)

    of_seeds = jax.vmap(of_seed, out_axes=None) if state.key.ndim else of_seed
    return of_seeds(state.evaluated_at, state.returns)


@eqx.filter_jit
def _result_of_seeds(config: Config, state: TrainState) -> Result:
    schedule = make_schedule(config)
    return _over_seeds(lambda config, state: result(config, schedule, state), config, None, state.key, state)


def _over_seeds(
    function: Callable[..., PyTree],
    config: Config,
    mesh: Mesh | None,
    keys: RandomKeys,
    of_seeds: RandomKeys | TrainState,
    *shared: PyTree,
) -> PyTree:
    """`function(config, of_seed, *shared)` for each seed, and for each value where the config has one for each seed."""
    batched, scalar = eqx.partition(config, jax.tree.map(lambda leaf: leaf.ndim > 0, config))

    def one_seed(mapped: tuple[Config, PyTree], of_envs: PyTree, unmapped: tuple[Config, PyTree]) -> tuple:
        (config, of_seed), (rest_of_config, shared) = mapped, unmapped
        return _apart(function(eqx.combine(config, rest_of_config), _together(of_seed, of_envs), *shared))

    of_seeds, of_envs = _apart(of_seeds)
    mapped, unmapped = (batched, of_seeds), (scalar, shared)
    return _together(*map_seeds(one_seed, mesh, mapped, of_envs, unmapped, has_seeds=keys.ndim > 0))


def _apart(tree: Any) -> tuple[Any, RolloutState | None]:
    """What every seed has, and what each of its environments has."""
    return (_with(None, tree), tree.rollout_state) if isinstance(tree, TrainState) else (tree, None)


def _together(tree: Any, rollout_state: RolloutState | None) -> Any:
    """The inverse of `_apart`."""
    return tree if rollout_state is None else _with(rollout_state, tree)


def _with(rollout_state: RolloutState | None, state: TrainState) -> TrainState:
    return eqx.tree_at(lambda s: s.rollout_state, state, rollout_state, is_leaf=lambda leaf: leaf is None)
