"""The stage loop: the one page that explains the whole system.

A run is a sequence of chunks, see `gorl.schedule`: iterations of the learner, evaluations and refinements. `train` is
one `lax.scan` over them; `iterate` is a Python loop over the same chunks, with a program for each kind of them.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from ._ahead import CompiledAhead
from ._blocks import by_blocks_is_faster, in_turn
from ._config import Config, as_arrays
from ._decoder import AbstractDecoder
from ._devices import spread
from ._divergence import Divergence, first_of
from ._env import load_environment
from ._errors import InputError
from ._evaluation import play_episodes
from ._learner import AbstractEncoder
from ._policy import Policy, StagedDecoder
from ._regression import Fit, fit_decoder
from ._rollout import Workers, demonstrate, rollout
from ._schedule import Chunk, Phase, schedule
from ._statistics import RunningStatistics
from ._tree import is_finite, where
from ._types import RandomKey, RandomKeys


class Best(eqx.Module):
    """The policy to keep: the best of the stage so far.

    As a stage begins it is still that of the stage before, which the first evaluation with a finite return replaces. As
    long as a run has had none, it is the latest policy whose numbers are finite.
    """

    mean_return: Float[Array, "*seeds"]  # -inf as a stage begins
    encoder: AbstractEncoder
    decoder: AbstractDecoder
    fitted: Bool[Array, "*seeds"]
    is_known: Bool[Array, "*seeds"]  # whether it had a finite return


class TrainState(eqx.Module):
    """Everything about a run between two chunks. A run goes on from it as if it had never stopped."""

    key: RandomKeys  # of the run; the key of each chunk is derived from it and the chunk's position
    position: Int[Array, "*seeds"]  # chunks done
    memory: PyTree  # the learner's: networks, optimiser state, statistics
    decoder: AbstractDecoder
    workers: Workers  # the training environments
    best: Best
    diverged_at: Int[Array, "*seeds"]  # iterations done when a number was first found not to be finite; -1 if none was
    divergence: Int[Array, "*seeds"]  # which number that was; a `gorl.Divergence`
    returns: Float[Array, "*seeds evaluations episodes"]
    metrics: dict[str, Float[Array, "*seeds evaluations"]]
    latest_metrics: dict[str, Float[Array, "*seeds"]]
    fits: Fit


class Curve(eqx.Module):
    """Every evaluation of a run, in order. A run over several seeds has a leading axis of seeds everywhere.

    Returns are NaN where they or the numbers of a seed were not finite, and where a run has not come to yet.
    """

    iterations: Int[Array, "*seeds evaluations"]  # of the learner, since the run began
    stage: Int[Array, "*seeds evaluations"]
    returns: Float[Array, "*seeds evaluations episodes"]
    metrics: dict[str, Float[Array, "*seeds evaluations"]]  # of the learner's last iteration; NaN as a stage begins
    steps_per_iteration: int = eqx.field(static=True)

    @property
    def env_steps(self) -> Int[np.ndarray, "*seeds evaluations"]:
        """Environment steps since the run began. In 64 bits on the host, where they cannot overflow."""
        return np.asarray(self.iterations, np.int64) * self.steps_per_iteration

    @property
    def mean_return(self) -> Float[Array, "*seeds evaluations"]:
        """The mean over the episodes of each evaluation."""
        return jnp.mean(self.returns, axis=-1)


class Evaluation(eqx.Module):
    """What `train` tells its callback of one evaluation."""

    key: UInt32[np.ndarray, "..."]  # `jax.random.key_data` of the run's: says which it is, of several under `vmap`
    stage: int
    env_steps: int  # since the run began
    returns: Float[np.ndarray, " episodes"]
    metrics: dict[str, float]  # of the learner's last iteration; NaN as a stage begins
    is_final: bool  # of the kept policy on fresh episodes, rather than of the one being trained


class Result(eqx.Module):
    """What a run leaves behind."""

    policy: Policy  # the best encoder of the last stage, and the decoder that it was trained with
    returns: Float[Array, "*seeds episodes"]  # of that policy, at its mode, on fresh episodes
    curve: Curve
    fits: Fit  # how each refinement went
    diverged_at: Int[Array, "*seeds"]  # iterations done when a number was first found not to be finite; -1 if none was
    divergence: Int[Array, "*seeds"]  # which number that was; a `gorl.Divergence`


def train(config: Config, key: RandomKey, on_evaluation: Callable[[Evaluation], None] | None = None) -> Result:
    """Trains a policy: GoRL's stages, from the first step to the last, as one compiled function.

    A pure function of its arguments, under `jax.jit` and `jax.vmap` as well. It compiles for itself, and a second call
    with a config of the same shapes compiles nothing. Under `vmap` a GPU does the runs side by side, and a CPU one
    after the other, chunk by chunk, which is faster there.

    **Arguments:**

    - `config`: what the run is.
    - `key`: from `jax.random.key`; decides everything random.
    - `on_evaluation`: called on the host after each evaluation, for logging; under `vmap` once for each run. Another
        function compiles again, so define it once. Without one nothing waits for the host.

    **Returns:**

    The policy and how it came about.

    **Raises:**

    `gorl.InputError` for a config or an environment that cannot be trained, before anything is compiled.

    ??? cite "Reference"

        GoRL, arXiv 2512.02581.
    """
    config = prepare(config)
    _check_key(key, batch_allowed=False)
    _check_batch(config, key)
    return _train(config, key, on_evaluation)


@eqx.filter_jit
def _train(config: Config, key: RandomKey, on_evaluation: Callable[[Evaluation], None] | None) -> Result:
    def body(state: TrainState, chunk: Chunk) -> tuple[TrainState, None]:
        return _advance(config, state, chunk, on_evaluation), None

    state, _ = jax.lax.scan(body, _start(config, key), schedule(config))
    return _finish(config, state)


def iterate(config: Config, start: RandomKeys | TrainState) -> Iterator[tuple[Chunk, TrainState]]:
    """The same run as `train`, chunk by chunk, for whoever wants to watch it, stop it or save it.

    Stopped anywhere and continued from its last state, it goes on bit-identically. Learning, evaluating and refining
    are programs of their own here: the run begins when the first of them is compiled, and the others are compiled in
    the background meanwhile.

    Several seeds are spread over the devices of the process, as many on each, on as many devices as divide them.
    `jax.config.update("jax_num_cpu_devices", 4)` makes devices of four cores. How many seeds go on one decides nothing
    but the rounding of numbers.

    **Arguments:**

    - `config`: what the run is.
    - `start`: a key from `jax.random.key`, or several (`jax.random.split(key, 8)`) for a run over seeds in one call;
        or a state to continue from. With several, a number of the config may be a batch with one value for each.

    **Returns:**

    An iterator over the chunks: each with the state after it. `finish` turns the last state into a `Result`.

    **Raises:**

    `gorl.InputError` as `train` does.
    """
    config = _prepare_batch(config, start)

    def chunks() -> Iterator[tuple[Chunk, TrainState]]:
        state = _begin(config, start)
        left = _chunks_left(config, state)
        with _compiled_ahead(config, state, left) as programs:
            for chunk in left:
                phase = Phase(int(chunk.phase))
                programs.wait(phase)
                state = _advance_batch(config, state, chunk, phase)
                yield chunk, state

    return chunks()


def precompile(config: Config, start: RandomKeys | TrainState) -> None:
    """Compiles everything that `iterate` is going to run, and waits for it. For measuring what running takes.

    **Arguments:**

    - `config`, `start`: as for `iterate`.

    **Raises:**

    `gorl.InputError` as `train` does.
    """
    config = _prepare_batch(config, start)
    state = _begin(config, start)
    with _compiled_ahead(config, state, _chunks_left(config, state)) as programs:
        programs.wait_for_all()


def shapes(config: Config, key: RandomKeys) -> TrainState:
    """What the state of a run looks like: shapes and types in place of arrays. Traces, and compiles nothing."""
    return eqx.filter_eval_shape(_start_batch, prepare(config), key)


def finish(config: Config, state: TrainState) -> Result:
    """The result of a run whose last state is `state`. (Before the last chunk: of the run so far.)"""
    config = prepare(config)
    _check_batch(config, state)
    result = _finish_batch(config, state)
    return result if spread(state.key.size) is None else jax.device_put(result, jax.local_devices()[0])


def prepare(config: Config) -> Config:
    """Checks that a config can be trained, which loads its environment, and makes its numbers arrays.

    **Raises:**

    `gorl.InputError`
    """
    config.check()
    if jax.config.jax_debug_nans:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "jax_debug_nans would stop at the NaN by which gorl marks what it does not know yet: set it to False (or "
            "JAX_DEBUG_NANS=0). A result says when a number was not finite and which it was: diverged_at, divergence."
        )
    episodes = load_environment(config.env)
    if config.num_stages > 1:
        config.refinement.check(episodes.num_steps)
    return as_arrays(config)


def _start(config: Config, key: RandomKey) -> TrainState:
    """The state before the first chunk: fresh networks, no episode running, nothing evaluated yet."""
    episodes = load_environment(config.env)
    memory_key, decoder_key, workers_key, _ = jax.random.split(key, 4)
    memory = config.learner.init(episodes.observation_size, episodes.action_size, memory_key)
    statistics = RunningStatistics.empty(episodes.observation_size)
    decoder = config.decoder.init(statistics, episodes.action_size, decoder_key)
    no = jnp.zeros((), bool)
    num_evaluations = int(schedule(config).evaluation[-1]) + 1
    num_refinements = config.num_stages - 1
    return TrainState(
        key=key,
        position=jnp.zeros((), jnp.int32),
        memory=memory,
        decoder=decoder,
        workers=_workers(config, workers_key),
        best=Best(_no_return(), config.learner.encoder(memory), decoder, no, no),
        diverged_at=jnp.full((), -1, jnp.int32),
        divergence=jnp.asarray(Divergence.NONE, jnp.int32),
        returns=_unknown(num_evaluations, config.evaluation_episodes),
        metrics={name: _unknown(num_evaluations) for name in config.learner.metric_names()},
        latest_metrics={name: _unknown() for name in config.learner.metric_names()},
        fits=Fit(_unknown(num_refinements), _unknown(num_refinements), jnp.zeros(num_refinements, jnp.int32)),
    )


def _advance(
    config: Config,
    state: TrainState,
    chunk: Chunk,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    phase: Phase | None = None,
) -> TrainState:
    """One chunk of a run; of one phase only, if that is known beforehand.

    The phase of a chunk has no batch axis under `vmap`, so that the switch stays a branch.
    """

    def advance(config: Config, state: TrainState, chunk: Chunk) -> TrainState:
        *_, run_key = jax.random.split(state.key, 4)
        key = jax.random.fold_in(run_key, chunk.position)
        # With one stage there is nothing to refine, and nothing of it to compile.
        evaluate = functools.partial(_evaluate, on_evaluation=on_evaluation)
        branches = (_learn, evaluate, _refine)[: 2 if config.num_stages == 1 else 3]
        branches = branches if phase is None else branches[phase : phase + 1]
        phases = [functools.partial(branch, config) for branch in branches]
        state = jax.lax.switch(chunk.phase, phases, state, chunk, key)
        return eqx.tree_at(lambda s: s.position, state, jnp.asarray(chunk.position + 1, jnp.int32))

    return in_turn(advance)(config, state, chunk)


def _learn(config: Config, state: TrainState, chunk: Chunk, key: RandomKey) -> TrainState:
    """One iteration of the learner: act through the frozen decoder, then learn from it."""
    learner = config.learner
    rollout_key, update_key = jax.random.split(key)
    policy = _policy(config, learner.encoder(state.memory), state.decoder, chunk.stage > 0)
    workers, experience = rollout(
        load_environment(config.env).in_training,
        policy,
        state.workers,
        learner.num_unrolls,
        learner.unroll_length,
        rollout_key,
    )
    memory, metrics = learner.update(state.memory, experience, update_key, jnp.asarray(chunk.progress))
    state = eqx.tree_at(lambda s: (s.memory, s.workers, s.latest_metrics), state, (memory, workers, metrics))
    divergence = first_of(
        (~is_finite(policy.encoder), Divergence.PARAMETERS),
        (~is_finite((experience.observation, experience.next_observation)), Divergence.OBSERVATION),
        (~is_finite(experience.reward), Divergence.REWARD),
        (~is_finite(learner.encoder(memory)), Divergence.PARAMETERS),
    )
    return _watched(state, chunk, divergence)


def _evaluate(
    config: Config,
    state: TrainState,
    chunk: Chunk,
    key: RandomKey,
    on_evaluation: Callable[[Evaluation], None] | None,
) -> TrainState:
    """Evaluates the policy and remembers the best of the stage; the last evaluation of a run is of the one kept."""
    current = (config.learner.evaluated_encoder(state.memory), state.decoder, jnp.asarray(chunk.stage > 0))
    kept = (state.best.encoder, state.best.decoder, state.best.fitted)
    encoder, decoder, fitted = where(chunk.is_final, kept, current)
    played = play_episodes(
        load_environment(config.env), _policy(config, encoder, decoder, fitted), key, config.evaluation_episodes
    )
    # A policy of NaN ends its episodes at once, which can look better than a policy that gets nowhere.
    own = first_of((~is_finite(encoder), Divergence.PARAMETERS), (~is_finite(decoder), Divergence.DECODER))
    is_sound = own == Divergence.NONE
    returns = jnp.where(is_sound, played.returns, jnp.nan)
    mean_return = jnp.mean(returns)
    is_known = jnp.isfinite(mean_return)
    # Where no return has ever been finite, what has been trained longest is as good a guess as any.
    is_better = jnp.where(is_known, mean_return > state.best.mean_return, is_sound & ~state.best.is_known)
    candidate = Best(jnp.where(is_known, mean_return, _no_return()), *current, is_known)
    best = where(is_better & ~chunk.is_final, candidate, state.best)
    metrics = {name: state.metrics[name].at[chunk.evaluation].set(state.latest_metrics[name]) for name in state.metrics}
    if on_evaluation is not None:
        tell = functools.partial(_tell, on_evaluation, config.steps_per_iteration)
        jax.debug.callback(tell, jax.random.key_data(state.key), chunk, returns, state.latest_metrics)
    state = eqx.tree_at(
        lambda s: (s.best, s.returns, s.metrics),
        state,
        (best, state.returns.at[chunk.evaluation].set(returns), metrics),
    )
    return _watched(state, chunk, jnp.where(is_sound, jnp.max(played.divergence), own))


def _tell(
    on_evaluation: Callable[[Evaluation], None],
    steps_per_iteration: int,
    key: Array,
    chunk: Chunk,
    returns: Array,
    metrics: dict[str, Array],
) -> None:
    on_evaluation(
        Evaluation(
            key=np.asarray(key),
            stage=int(chunk.stage),
            env_steps=int(chunk.iterations) * steps_per_iteration,
            returns=np.asarray(returns),
            metrics={name: float(figure) for name, figure in metrics.items()},
            is_final=bool(chunk.is_final),
        )
    )


def _refine(config: Config, state: TrainState, chunk: Chunk, key: RandomKey) -> TrainState:
    """Ends a stage: a fresh decoder is fitted to what the best policy does, and a fresh encoder starts on it."""
    data_key, decoder_key, fit_key, memory_key, workers_key = jax.random.split(key, 5)
    episodes = load_environment(config.env)
    policy = _policy(config, state.best.encoder, state.best.decoder, state.best.fitted)
    observations, actions, latents = demonstrate(
        episodes,
        policy,
        config.refinement.num_episodes,
        config.refinement.stride,
        config.learner.unroll_length,
        data_key,
    )
    fresh = config.decoder.init(RunningStatistics.of(observations), episodes.action_size, decoder_key)
    own_latents = latents if config.refinement.own_latents else None
    decoder, fit = fit_decoder(fresh, observations, actions, config.refinement, fit_key, own_latents)
    memory = config.learner.restart(state.memory, episodes.observation_size, episodes.action_size, memory_key)
    state = TrainState(
        key=state.key,
        position=state.position,
        memory=memory,
        decoder=decoder,
        workers=_workers(config, workers_key),
        best=eqx.tree_at(lambda b: b.mean_return, state.best, _no_return()),
        diverged_at=state.diverged_at,
        divergence=state.divergence,
        returns=state.returns,
        metrics=state.metrics,
        latest_metrics={name: _unknown() for name in state.latest_metrics},
        fits=jax.tree.map(lambda all_fits, this: all_fits.at[chunk.stage].set(this), state.fits, fit),
    )
    return _watched(state, chunk, first_of((~jnp.isfinite(fit.heldout_loss), Divergence.DECODER)))


def _watched(state: TrainState, chunk: Chunk, divergence: Int[Array, ""]) -> TrainState:
    """Takes note of which number of a run first was not finite, and when. It goes on: its next stage begins afresh."""
    is_first = (divergence != Divergence.NONE) & (state.diverged_at < 0)
    seen = where(is_first, (jnp.asarray(chunk.iterations), divergence), (state.diverged_at, state.divergence))
    return eqx.tree_at(lambda s: (s.diverged_at, s.divergence), state, seen)


def _finish(config: Config, state: TrainState) -> Result:
    chunks = schedule(config)
    rows = chunks.phase == Phase.EVALUATE
    curve = Curve(
        jnp.asarray(chunks.iterations[rows][:-1]),
        jnp.asarray(chunks.stage[rows][:-1]),
        state.returns[:-1],
        {name: figures[:-1] for name, figures in state.metrics.items()},
        config.steps_per_iteration,
    )
    policy = _policy(config, state.best.encoder, state.best.decoder, state.best.fitted)
    return Result(policy, state.returns[-1], curve, state.fits, state.diverged_at, state.divergence)


def _workers(config: Config, key: RandomKey) -> Workers:
    """The training environments as a stage begins."""
    episodes, num_envs = load_environment(config.env).in_training, config.learner.num_envs
    return Workers.staggered(episodes, num_envs, key) if config.env.staggered else Workers.idle(episodes, num_envs)


def _policy(config: Config, encoder: AbstractEncoder, decoder: AbstractDecoder, fitted: PyTree) -> Policy:
    episodes = load_environment(config.env)
    return Policy(encoder, StagedDecoder(decoder, fitted), episodes.observation_size, episodes.action_size)


def _no_return() -> Float[Array, ""]:
    return jnp.full((), -jnp.inf, jnp.float32)


def _unknown(*shape: int) -> Float[Array, "..."]:
    return jnp.full(shape, jnp.nan, jnp.float32)


def _check_key(key: RandomKeys, batch_allowed: bool) -> None:
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise InputError("the key must come from jax.random.key(seed).")
    if key.ndim > batch_allowed:
        raise InputError("train takes one key: use jax.vmap(gorl.train, in_axes=(None, 0)) for several.")


def _check_batch(config: Config, start: RandomKeys | TrainState) -> None:
    shape = (start.key if isinstance(start, TrainState) else start).shape
    for leaf in jax.tree.leaves(config):
        if leaf.shape not in ((), shape):
            raise InputError(
                f"a batch of {leaf.size} values in the config does not go with keys of shape {shape}: give a key for "
                "each value to gorl.iterate, or map gorl.train over the values by eqx.filter_vmap(gorl.train, "
                "in_axes=(eqx.if_array(0), None))."
            )


def _prepare_batch(config: Config, start: RandomKeys | TrainState) -> Config:
    """As `prepare`, and checks that a run can begin or go on there."""
    config = prepare(config)
    if not isinstance(start, TrainState):
        _check_key(start, batch_allowed=True)
    _check_batch(config, start)
    if not isinstance(start, TrainState):
        shapes(config, start)  # whatever cannot be trained says so now, rather than at the first chunk
    return config


def _begin(config: Config, start: RandomKeys | TrainState) -> TrainState:
    """The state that a run begins or goes on with, where it is going to run."""
    if not isinstance(start, TrainState):
        return _start_batch(config, start)
    devices = spread(start.key.size)
    return start if devices is None else jax.device_put(start, devices)


def _chunks_left(config: Config, state: TrainState) -> Chunk:
    """The chunks that are left, stacked; of several seeds all have done as many."""
    position = int(np.max(state.position))
    return jax.tree.map(lambda column: column[position:], schedule(config))


def _compiled_ahead(config: Config, state: TrainState, left: Chunk) -> CompiledAhead:
    """The programs of the phases that are left, in the order in which they come."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def lower(chunk: Chunk, phase: Phase) -> Any:
        with jax.default_device(device):  # which another thread does not have from this one
            return _advance_batch.lower(config, state, chunk, phase)  # pyright: ignore[reportFunctionMemberAccess]

    programs: dict[Hashable, Callable[[], Any]] = {}
    _, first_of_each = np.unique(left.phase, return_index=True)
    for index in np.sort(first_of_each):
        chunk = next(left.from_position(int(index)))
        phase = Phase(int(chunk.phase))
        programs[phase] = functools.partial(lower, chunk, phase)
    return CompiledAhead(programs)


def _over_seeds(function, config: Config, start: RandomKeys | TrainState, *rest: PyTree) -> PyTree:
    """`function(config, start, *rest)` for each seed, and for each value where the config has one for each seed."""
    keys = start.key if isinstance(start, TrainState) else start
    if keys.ndim == 0:
        return function(config, start, *rest)
    of_seeds, of_all = eqx.partition(config, jax.tree.map(lambda leaf: leaf.ndim > 0, config))

    def on_device(of_seeds: PyTree, of_all: PyTree) -> PyTree:
        def one(of_seed: tuple[Config, PyTree]) -> PyTree:
            (config, start), (rest_of_config, rest) = of_seed, of_all
            return function(eqx.combine(config, rest_of_config), start, *rest)

        return jax.lax.map(one, of_seeds) if by_blocks_is_faster() else jax.vmap(one)(of_seeds)

    if (devices := spread(keys.size)) is not None:
        specs = (devices.spec, PartitionSpec())
        on_device = jax.shard_map(on_device, mesh=devices.mesh, in_specs=specs, out_specs=devices.spec, check_vma=False)
    return on_device((of_seeds, start), (of_all, rest))


@eqx.filter_jit
def _start_batch(config: Config, key: RandomKeys) -> TrainState:
    return _over_seeds(_start, config, key)


@eqx.filter_jit
def _advance_batch(config: Config, state: TrainState, chunk: Chunk, phase: Phase) -> TrainState:
    return _over_seeds(functools.partial(_advance, phase=phase), config, state, chunk)


@eqx.filter_jit
def _finish_batch(config: Config, state: TrainState) -> Result:
    return _over_seeds(_finish, config, state)
