"""What a run carries from step to step, and what it leaves behind."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from ._backend import on_first_part
from ._decoder import AbstractDecoder
from ._divergence import Divergence
from ._policy import Policy
from ._regression import Fit
from ._rollout import RolloutState
from ._schedule import ScheduleStep
from ._types import RandomKeys


class Best(eqx.Module):
    """The best policy of the stage so far.

    As a stage begins it is still that of the stage before, which the first evaluation with a finite return replaces. As
    long as a run has had no finite return, it is the latest policy whose parameters are finite.

    **Attributes:**

    - `mean_return`: in the evaluation that chose it; -inf as a stage begins.
    - `policy`: the policy.
    - `is_known`: whether it has had a finite return.
    """

    mean_return: Float[Array, "*seeds"]
    policy: Policy
    is_known: Bool[Array, "*seeds"]


class TrainState(eqx.Module):
    """Everything about a run between two steps of its schedule. A run goes on from it as if it had never stopped.

    **Attributes:**

    - `key`: of the run; the key of each step is derived from it and from the step's index.
    - `index`: steps of the schedule that are done.
    - `iterations`: of the learner that are done.
    - `learner_state`: networks, optimiser state and statistics of the learner.
    - `decoder`: the decoder, frozen while the encoder learns.
    - `rollout_state`: the training environments.
    - `best`: the best policy of the stage.
    - `diverged_at`: iterations done when a number was first found not to be finite; -1 if none was.
    - `divergence`: which number that was; a `gorl.Divergence`.
    - `evaluated_at`: iterations that were done at every evaluation so far; -1 where none has been.
    - `returns`: of every evaluation so far; NaN where none has been yet.
    - `metrics`: of the learner's last iteration before each evaluation; and the mean over its episodes of what the
        environment reports, see `StepResult`.
    - `latest_metrics`: of the learner's last iteration; NaN as a stage begins.
    - `fits`: how each refinement went.
    """

    key: RandomKeys
    index: Int[Array, "*seeds"]
    iterations: Int[Array, "*seeds"]
    learner_state: PyTree
    decoder: AbstractDecoder
    rollout_state: RolloutState
    best: Best
    diverged_at: Int[Array, "*seeds"]
    divergence: Int[Array, "*seeds"]
    evaluated_at: Int[Array, "*seeds evaluations"]
    returns: Float[Array, "*seeds evaluations episodes"]
    metrics: dict[str, Float[Array, "*seeds evaluations"]]
    latest_metrics: dict[str, Float[Array, "*seeds"]]
    fits: Fit


class Curve(eqx.Module):
    """Every evaluation of a run, in order. A run over several seeds has a leading axis of seeds everywhere.

    Returns are NaN where they or the parameters of a seed were not finite, where a run has not come to yet, and where a
    stage ended before (`config.stage_patience`).

    **Attributes:**

    - `iterations`: of the learner, since the run began; -1 where there was no evaluation.
    - `stage`: the stage that each evaluation belongs to.
    - `returns`: the undiscounted return of each episode.
    - `metrics`: of the learner's last iteration, NaN as a stage begins; and the mean over episodes of what the
        environment reports, see `StepResult`.
    - `steps_per_iteration`: environment steps in one iteration of the learner.
    """

    iterations: Int[Array, "*seeds evaluations"]
    stage: Int[Array, "*seeds evaluations"]
    returns: Float[Array, "*seeds evaluations episodes"]
    metrics: dict[str, Float[Array, "*seeds evaluations"]]
    steps_per_iteration: int = eqx.field(static=True)

    @property
    def env_steps(self) -> Int[np.ndarray, "*seeds evaluations"]:
        """Environment steps since the run began; -1 where there was no evaluation.

        In 64 bits on the host, where they cannot overflow.
        """
        iterations = np.asarray(self.iterations, np.int64)
        return np.where(iterations < 0, -1, iterations * self.steps_per_iteration)

    @property
    def mean_return(self) -> Float[Array, "*seeds evaluations"]:
        """The mean over the episodes of each evaluation."""
        return jnp.mean(self.returns, axis=-1)


class EvaluationRecord(eqx.Module):
    """One evaluation, as `gorl.train` gives it to its callback.

    The run waits for the callback. An exception in it ends the run, and every other run under the same `vmap`. JAX
    cannot raise that exception from a compiled program: it raises a `jax.errors.JaxRuntimeError` whose text has the
    exception's type, message and traceback. On a device that computes asynchronously it does so where the result is
    first read. In the loop over `gorl.iterate` an exception is an ordinary one.

    **Attributes:**

    - `key`: `jax.random.key_data` of the run's key, which tells runs under `vmap` apart.
    - `stage`: the stage, counted from 0.
    - `env_steps`: environment steps since the run began.
    - `returns`: the undiscounted return of each episode.
    - `metrics`: of the learner's last iteration, NaN as a stage begins; and the mean over episodes of what the
        environment reports, see `StepResult`.
    - `is_final`: whether it is the evaluation of the best policy, rather than of the one that is being trained.
    """

    key: UInt32[np.ndarray, "..."]
    stage: int
    env_steps: int
    returns: Float[np.ndarray, " episodes"]
    metrics: dict[str, float]
    is_final: bool


# Called on the host after each evaluation.
OnEvaluation: TypeAlias = Callable[[EvaluationRecord], None] | None


class Result(eqx.Module):
    """What a run leaves behind. A run over several seeds has a leading axis of seeds everywhere.

    **Attributes:**

    - `policy`: the best encoder of the last stage, and the decoder that it was trained with.
    - `returns`: of that policy, at its mode, on fresh episodes.
    - `curve`: every evaluation.
    - `fits`: how each refinement went.
    - `diverged_at`: iterations done when a number was first found not to be finite; -1 if none was.
    - `divergence`: which number that was; a `gorl.Divergence`.
    """

    policy: Policy
    returns: Float[Array, "*seeds episodes"]
    curve: Curve
    fits: Fit
    diverged_at: Int[Array, "*seeds"]
    divergence: Int[Array, "*seeds"]


def nans(*shape: int) -> Float[Array, "..."]:
    """What a run does not know yet."""
    return jnp.full(shape, jnp.nan, jnp.float32)


def no_return() -> Float[Array, ""]:
    """The return of a policy that has not been evaluated."""
    return jnp.full((), -jnp.inf, jnp.float32)


def record_divergence(state: TrainState, divergence: Int[Array, ""]) -> TrainState:
    """Records what first was not finite, and when. The run goes on: its next stage begins afresh."""
    is_first = (divergence != Divergence.NONE) & (state.diverged_at < 0)
    return dataclasses.replace(
        state,
        diverged_at=jnp.where(is_first, state.iterations, state.diverged_at),
        divergence=jnp.where(is_first, divergence, state.divergence),
    )


def emit_record(
    on_evaluation: Callable[[EvaluationRecord], None],
    steps_per_iteration: int,
    state: TrainState,
    step: ScheduleStep,
    returns: Float[Array, " episodes"],
    metrics: dict[str, Float[Array, ""]],
) -> None:
    """Calls `on_evaluation` on the host, from within a compiled program."""

    def call(key: Array, iterations: Array, step: ScheduleStep, returns: Array, metrics: dict[str, Array]) -> None:
        on_evaluation(
            EvaluationRecord(
                key=np.asarray(key),
                stage=int(step.stage),
                env_steps=int(iterations) * steps_per_iteration,
                returns=np.asarray(returns),
                metrics={name: float(metric) for name, metric in metrics.items()},
                is_final=bool(step.is_final),
            )
        )

    def emit() -> None:
        jax.debug.callback(call, jax.random.key_data(state.key), state.iterations, step, returns, metrics)

    on_first_part(emit)
