"""When a stage has trained enough: its evaluations stop rising before its steps are used up.

Whether the rest of a stage is left out follows from the evaluations so far, so nothing has to be remembered for it. All
seeds that train side by side decide together. Under `vmap` the decision has no batch axis, so that what is left out is
a branch that is not taken. The schedule keeps its length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._config import Config
from ._schedule import Phase, Schedule, ScheduleStep
from ._state import TrainState


def unless_over(
    config: Config, schedule: Schedule, state: TrainState, step: ScheduleStep, advance: Callable[[], TrainState]
) -> TrainState:
    """`advance()`, or `state` as it is if the step belongs to the rest of a stage that is left out."""
    if config.stage_patience is None:
        return advance()
    is_out = is_left_out(config, schedule, state.evaluated_at, state.returns, step)
    return jax.lax.cond(is_out, lambda: state, advance)


def is_left_out(
    config: Config,
    schedule: Schedule,
    evaluated_at: Int[Array, " evaluations"],
    returns: Float[Array, "evaluations episodes"],
    step: ScheduleStep,
) -> Bool[Array, ""]:
    """Whether a step belongs to the rest of a stage that is left out. Has no batch axis under `vmap` over seeds.

    **Arguments:**

    - `config`: with a `stage_patience`.
    - `schedule`: of the config.
    - `evaluated_at`, `returns`: of the state.
    - `step`: the step.
    """
    assert config.stage_patience is not None
    mean_returns, has_been = _of_all_seeds(jnp.mean(returns, axis=-1), evaluated_at >= 0)
    stages = jnp.asarray(schedule.steps.stage[schedule.steps.phase == Phase.EVALUATE])
    of_stage = has_been & (stages == step.stage)
    known = jnp.where(of_stage & jnp.isfinite(mean_returns), mean_returns, -jnp.inf)
    number, count = jnp.cumsum(of_stage), jnp.sum(of_stage)
    is_recent = number > count - config.stage_patience
    latest = jnp.max(jnp.where(is_recent, known, -jnp.inf))
    before = jnp.max(jnp.where(is_recent, -jnp.inf, known))
    has_stopped = (count > config.stage_patience) & (latest <= before + config.stage_margin * jnp.abs(before))
    return has_stopped & (step.phase != Phase.REFINE) & ~jnp.asarray(step.is_final)


@jax.custom_batching.custom_vmap
def _of_all_seeds(
    returns: Float[Array, " evaluations"], has_been: Bool[Array, " evaluations"]
) -> tuple[Float[Array, " evaluations"], Bool[Array, " evaluations"]]:
    """Of one seed what it is given; under `vmap` the mean of the finite returns of all, without a batch axis."""
    return returns, has_been


@_of_all_seeds.def_vmap
def _(axis_size: int, in_batched: list[bool], *evaluated: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
    returns, has_been = (
        leaf if is_batched else leaf[None] for leaf, is_batched in zip(evaluated, in_batched, strict=True)
    )
    # Under another `vmap` outside of this one, its seeds decide with these.
    return _of_all_seeds(
        jnp.nanmean(jnp.where(jnp.isfinite(returns), returns, jnp.nan), axis=0), jnp.any(has_been, axis=0)
    ), (False, False)
