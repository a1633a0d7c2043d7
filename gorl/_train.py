"""The stage loop: the one page that explains the whole system.

    for stage in stages:
        evaluate
        repeat: learn, and evaluate at every interval
        if it is not the last stage: refine
    evaluate the best policy

This order is the schedule of a run (`gorl.make_schedule`), and a run is a scan over it. `gorl.iterate` is a Python loop
over the same steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ._backend import call_on_mesh, sequential_vmap
from ._config import Config
from ._decoder import AbstractDecoder
from ._divergence import Divergence, first_of
from ._env import EpisodicEnv
from ._evaluation import play_episodes
from ._learner import AbstractEncoder
from ._patience import unless_over
from ._policy import Policy, StagedDecoder
from ._prepare import check_batch, check_callback, check_decoder, check_key, mesh_of, prepare
from ._regression import Fit, fit_decoder
from ._rollout import RolloutState, collect_dataset, rollout
from ._schedule import Phase, Schedule, ScheduleStep, make_schedule
from ._state import Best, Curve, OnEvaluation, Result, TrainState, emit_record, nans, no_return, record_divergence
from ._statistics import RunningStatistics
from ._tree import all_finite
from ._types import RandomKey

# One phase: the state of a run after a step of its schedule.
PhaseFunction: TypeAlias = Callable[[Config, EpisodicEnv, TrainState, ScheduleStep, RandomKey], TrainState]


def train(
    config: Config,
    key: RandomKey,
    on_evaluation: OnEvaluation = None,
    *,
    decoder: AbstractDecoder | None = None,
    mesh: Mesh | None = None,
) -> Result:
    """Trains a policy: GoRL's stages, from the first step to the last, as one compiled function.

    A pure function of its arguments, under `jax.jit` and `jax.vmap` as well. It compiles itself, and a second call with
    a config of the same shapes compiles nothing.

    **Arguments:**

    - `config`: what the run is.
    - `key`: from `jax.random.key`; decides everything random.
    - `on_evaluation`: called on the host after each evaluation, see [`gorl.EvaluationRecord`][]; under `vmap` once for
        each run. Another function compiles again, so define it once. Without one nothing waits for the host.
    - `decoder`: of the first stage, such as [`gorl.fit_demonstrations`][] makes; `None` for the identity.
    - `mesh`: devices that share the environments, as for [`gorl.iterate`][]; `None` for one device.

    **Returns:**

    The policy and how it came about.

    **Raises:**

    `gorl.InputError` for what cannot be trained or called, before anything is compiled.

    ??? cite "Reference"

        GoRL, arXiv 2512.02581.
    """
    check_callback(on_evaluation)
    config, env = prepare(config)
    check_key(key, batch_allowed=False)
    check_batch(config, key)
    decoder = check_decoder(config, env, decoder)
    if (mesh := mesh_of(config, key, mesh)) is not None:
        return call_on_mesh(mesh, _train, config, env, key, decoder, on_evaluation)
    return _train(config, env, key, decoder, on_evaluation)


@eqx.filter_jit
def _train(
    config: Config, env: EpisodicEnv, key: RandomKey, decoder: AbstractDecoder | None, on_evaluation: OnEvaluation
) -> Result:
    schedule = make_schedule(config)
    functions = phase_functions(on_evaluation)
    # With one stage there is nothing to refine, and nothing of it to compile.
    phases = [functions[phase] for phase in Phase if phase != Phase.REFINE or config.num_stages > 1]

    def any_phase(
        config: Config, env: EpisodicEnv, state: TrainState, step: ScheduleStep, key: RandomKey
    ) -> TrainState:
        # The phase has no batch axis under `vmap`, so the switch stays a branch.
        return jax.lax.switch(step.phase, phases, config, env, state, step, key)

    def body(state: TrainState, step: ScheduleStep) -> tuple[TrainState, None]:
        return unless_over(config, schedule, state, step, lambda: advance(any_phase, config, env, state, step)), None

    state, _ = jax.lax.scan(body, init(config, env, schedule, key, decoder), schedule.steps)
    return result(config, schedule, state)


def phase_functions(on_evaluation: OnEvaluation = None) -> dict[Phase, PhaseFunction]:
    """What each phase does."""
    evaluate = functools.partial(_evaluate, on_evaluation=on_evaluation)
    return {Phase.LEARN: _learn, Phase.EVALUATE: evaluate, Phase.REFINE: _refine}


def advance(
    phase: PhaseFunction, config: Config, env: EpisodicEnv, state: TrainState, step: ScheduleStep
) -> TrainState:
    """One step of the schedule."""

    def one_run(config: Config, state: TrainState, step: ScheduleStep) -> TrainState:
        *_, run_key = jax.random.split(state.key, 4)
        state = phase(config, env, state, step, jax.random.fold_in(run_key, step.index))
        return dataclasses.replace(state, index=jnp.asarray(step.index + 1, jnp.int32))

    return sequential_vmap(one_run)(config, state, step)  # on a CPU, seeds one after the other


def init(
    config: Config, env: EpisodicEnv, schedule: Schedule, key: RandomKey, decoder: AbstractDecoder | None = None
) -> TrainState:
    """The state before the first step: fresh networks, no episode running, nothing evaluated yet."""
    learner_key, decoder_key, rollout_key, _ = jax.random.split(key, 4)
    learner_state = config.learner.init(env.observation_size, env.action_size, learner_key, env.critic_observation_size)
    if decoder is None:
        decoder = config.decoder.init(RunningStatistics.empty(env.observation_size), env.action_size, decoder_key)
    staged = StagedDecoder(decoder, fitted=jnp.asarray(config.starts_fitted))
    policy = _policy(env, config.learner.encoder(learner_state), staged)
    return TrainState(
        key=key,
        index=jnp.zeros((), jnp.int32),
        iterations=jnp.zeros((), jnp.int32),
        learner_state=learner_state,
        decoder=decoder,
        rollout_state=RolloutState.begin(
            env.in_training, config.learner.num_envs, rollout_key, staggered=config.env.staggered
        ),
        best=Best(no_return(), policy, is_known=jnp.zeros((), bool)),
        diverged_at=jnp.full((), -1, jnp.int32),
        divergence=jnp.asarray(Divergence.NONE, jnp.int32),
        evaluated_at=jnp.full(schedule.num_evaluations, -1, jnp.int32),
        returns=nans(schedule.num_evaluations, config.evaluation_episodes),
        metrics={name: nans(schedule.num_evaluations) for name in (*config.learner.metric_names(), *env.term_names)},
        latest_metrics={name: nans() for name in config.learner.metric_names()},
        fits=Fit.unknown(config.num_stages - 1),
    )


def _learn(config: Config, env: EpisodicEnv, state: TrainState, step: ScheduleStep, key: RandomKey) -> TrainState:
    """One iteration of the learner: acts through the frozen decoder, then learns from it."""
    learner = config.learner
    rollout_key, update_key = jax.random.split(key)
    policy = _policy(env, learner.encoder(state.learner_state), _staged(config, state, step))
    rollout_state, experience = rollout(
        env.in_training, policy, state.rollout_state, learner.num_unrolls, learner.unroll_length, rollout_key
    )
    learner_state, metrics = learner.update(state.learner_state, experience, update_key, jnp.asarray(step.progress))
    divergence = first_of(
        (~all_finite(policy.encoder), Divergence.PARAMETERS),
        (~all_finite(experience.observations), Divergence.OBSERVATION),
        (~all_finite(experience.reward), Divergence.REWARD),
        (~all_finite(learner.encoder(learner_state)), Divergence.PARAMETERS),
    )
    state = dataclasses.replace(state, learner_state=learner_state, rollout_state=rollout_state, latest_metrics=metrics)
    return record_divergence(dataclasses.replace(state, iterations=state.iterations + 1), divergence)


def _evaluate(
    config: Config,
    env: EpisodicEnv,
    state: TrainState,
    step: ScheduleStep,
    key: RandomKey,
    on_evaluation: OnEvaluation,
) -> TrainState:
    """Evaluates the policy and remembers the best of the stage. The last evaluation of a run is of the best policy."""
    current = _policy(env, config.learner.evaluated_encoder(state.learner_state), _staged(config, state, step))
    policy = optax.tree.where(step.is_final, state.best.policy, current)
    played = play_episodes(env, policy, key, config.evaluation_episodes)
    # A policy of NaN ends its episodes at once, which can look better than a policy that gets nowhere.
    of_policy = first_of(
        (~all_finite(policy.encoder), Divergence.PARAMETERS), (~all_finite(policy.decoder), Divergence.DECODER)
    )
    is_sound = of_policy == Divergence.NONE
    returns = jnp.where(is_sound, played.returns, jnp.nan)
    mean_return = jnp.mean(returns)
    is_known = jnp.isfinite(mean_return)
    # Where no return has ever been finite, what has been trained longest is as good a guess as any.
    is_better = jnp.where(is_known, mean_return > state.best.mean_return, is_sound & ~state.best.is_known)
    candidate = Best(jnp.where(is_known, mean_return, no_return()), current, is_known)
    best = optax.tree.where(is_better & ~step.is_final, candidate, state.best)
    latest = state.latest_metrics | {name: jnp.mean(term) for name, term in played.terms.items()}
    metrics = {name: state.metrics[name].at[step.evaluation].set(metric) for name, metric in latest.items()}
    if on_evaluation is not None:
        emit_record(on_evaluation, config.steps_per_iteration, state, step, returns, latest)
    all_returns = state.returns.at[step.evaluation].set(returns)
    evaluated_at = state.evaluated_at.at[step.evaluation].set(state.iterations)
    state = dataclasses.replace(state, best=best, evaluated_at=evaluated_at, returns=all_returns, metrics=metrics)
    return record_divergence(state, jnp.where(is_sound, jnp.max(played.divergence), of_policy))


def _refine(config: Config, env: EpisodicEnv, state: TrainState, step: ScheduleStep, key: RandomKey) -> TrainState:
    """Ends a stage: fits a fresh decoder to what the best policy does, and starts a fresh encoder on it."""
    data_key, decoder_key, fit_key, learner_key, rollout_key = jax.random.split(key, 5)
    refinement = config.refinement
    observations, actions, latents = collect_dataset(
        env, state.best.policy, refinement.num_episodes, refinement.stride, config.learner.unroll_length, data_key
    )
    fresh = config.decoder.init(RunningStatistics.of(observations), env.action_size, decoder_key)
    decoder, fit = fit_decoder(
        fresh, observations, actions, refinement, fit_key, latents if refinement.own_latents else None
    )
    state = dataclasses.replace(
        state,
        learner_state=config.learner.restart(
            state.learner_state, env.observation_size, env.action_size, learner_key, env.critic_observation_size
        ),
        decoder=decoder,
        rollout_state=RolloutState.begin(
            env.in_training, config.learner.num_envs, rollout_key, staggered=config.env.staggered
        ),
        best=dataclasses.replace(state.best, mean_return=no_return()),
        latest_metrics={name: nans() for name in state.latest_metrics},
        fits=jax.tree.map(lambda all_fits, this: all_fits.at[step.stage].set(this), state.fits, fit),
    )
    return record_divergence(state, first_of((~jnp.isfinite(fit.validation_loss), Divergence.DECODER)))


def result(config: Config, schedule: Schedule, state: TrainState) -> Result:
    """The result of a run that ended in `state`."""
    points = schedule.curve
    curve = Curve(
        state.evaluated_at[:-1],
        jnp.asarray(points.stage),
        state.returns[:-1],
        {name: metric[:-1] for name, metric in state.metrics.items()},
        config.steps_per_iteration,
    )
    return Result(state.best.policy, state.returns[-1], curve, state.fits, state.diverged_at, state.divergence)


def _policy(env: EpisodicEnv, encoder: AbstractEncoder, decoder: StagedDecoder) -> Policy:
    return Policy(encoder, decoder, env.observation_size, env.action_size)


def _staged(config: Config, state: TrainState, step: ScheduleStep) -> StagedDecoder:
    """The decoder of a stage: the identity in the first, unless one was given. The stage has no batch axis."""
    return StagedDecoder(state.decoder, jnp.asarray((step.stage > 0) | config.starts_fitted))
