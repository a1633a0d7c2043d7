"""Longer runs: a config with more steps, and a state to continue from."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._config import Config
from ._decoder import Identity
from ._errors import InputError
from ._hyperparameters import replace
from ._iterate import state_shapes
from ._schedule import make_schedule
from ._state import TrainState, nans

_ADDED = ("stage_steps", "extra_evaluations")  # the fields in which a longer config differs


def lengthen(config: Config, total_steps: int) -> Config:
    """`config` with more environment steps: further stages follow, each about as long as the last one.

    Where nothing is refined, without a decoder or with one stage that was given its own, this stage gets longer. It is
    also evaluated where it ended before. The interval between evaluations stays.

    **Arguments:**

    - `config`: the config of a run.
    - `total_steps`: environment steps of all stages together.

    **Returns:**

    The config of the longer run, for [`extend`][].

    **Raises:**

    `gorl.InputError` if `total_steps` is not at least an iteration more than `config` has.
    """
    now = sum(config.stage_steps)
    more = total_steps - now
    if more < config.steps_per_iteration:
        raise InputError(
            f"a run of {now:,} environment steps gets longer by one iteration or more, which takes "
            f"{config.steps_per_iteration:,}: give at least {now + config.steps_per_iteration:,} steps, not "
            f"{total_steps:,}."
        )
    is_frozen = config.starts_fitted and config.num_stages == 1
    if isinstance(config.decoder, Identity) or is_frozen:
        return replace(config, {"stage_steps": (total_steps,), "extra_evaluations": (*config.extra_evaluations, now)})
    count = max(1, round(more / config.stage_steps[-1]))
    ends = [more * stage // count for stage in range(count + 1)]
    stages = tuple(end - begin for begin, end in itertools.pairwise(ends))
    return replace(config, {"stage_steps": config.stage_steps + stages})


def extend(config: Config, state: TrainState, longer: Config) -> TrainState:
    """The state from which `gorl.iterate(longer, state)` continues a run of `config`, finished or not.

    A pure function. Everything up to `state` stays as it is, the curve included. The evaluation of the best policy that
    ended a finished run is dropped, because the longer run does not end there. The result is the same bit for bit as
    that of a run that began with `longer`, unless `learner.learning_rate_decay` is above 0. The decay goes by the
    share of the run that is done: before `state` it went towards the end of the shorter run, after it it goes towards
    the end of the longer one, so the learning rate rises where a finished run goes on.

    **Arguments:**

    - `config`: the config of the run so far.
    - `state`: any state of that run, of one seed or of several.
    - `longer`: the config to go on with: `gorl.lengthen(config, total_steps)`, or any other that only adds to the end.

    **Returns:**

    The state of the longer run.

    **Raises:**

    `gorl.InputError` if `longer` differs in more than what comes after the end, or `state` is not one of `config`.
    """
    if not continues(config, longer):
        raise InputError(
            "a run can go on only with a config that adds to its end: take gorl.lengthen(config, total_steps)."
        )
    axis = state.key.ndim  # that of evaluations and of refinements
    schedule = make_schedule(config)
    if state.returns.shape[axis] != schedule.num_evaluations:
        raise InputError("this state is not one of a run with this config: give the config that the run has.")
    like = state_shapes(longer, state.key)

    def lengthened(count: int, leaf: Array, like: Array | jax.ShapeDtypeStruct, unknown: int = 0) -> Array:
        """The first `count` entries of `leaf`, and as many more as `like` has, which are not known yet."""
        shape = (*like.shape[:axis], like.shape[axis] - count, *like.shape[axis + 1 :])
        is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
        more = nans(*shape) if is_real else jnp.full(shape, unknown, leaf.dtype)
        return jnp.concatenate([jax.lax.slice_in_dim(leaf, 0, count, axis=axis), more], axis)

    returns, metrics = jax.tree.map(
        lambda leaf, like: lengthened(schedule.num_evaluations - 1, leaf, like),
        (state.returns, state.metrics),
        (like.returns, like.metrics),
    )
    fits = jax.tree.map(lambda leaf, like: lengthened(leaf.shape[axis], leaf, like), state.fits, like.fits)
    evaluated_at = lengthened(schedule.num_evaluations - 1, state.evaluated_at, like.evaluated_at, unknown=-1)
    index = jnp.minimum(state.index, len(schedule) - 1)
    evaluated = {"evaluated_at": evaluated_at, "returns": returns, "metrics": metrics}
    return dataclasses.replace(state, index=index, fits=fits, **evaluated)


def continues(config: Config, longer: Config) -> bool:
    """Whether a run of `longer` begins with all steps of one of `config`, except its last evaluation."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in _ADDED]
    if not all(getattr(config, name) == getattr(longer, name) for name in names):
        return False
    before, after = make_schedule(config).steps, make_schedule(longer).steps
    end = len(before.index) - 1
    columns = ("phase", "stage", "iterations", "evaluation", "is_final")
    return all(np.array_equal(getattr(before, column)[:end], getattr(after, column)[:end]) for column in columns)
