"""The schedule of a run: which step of it follows which.

It is made on the host, from the config alone, and a scan takes it as its inputs. It must not be part of the carried
state: there `vmap` over seeds would give it a batch axis, and a branch on it would become a select that runs every
branch.
"""

import enum
from collections.abc import Iterator

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._config import Config


class Phase(enum.IntEnum):
    """What a step of the schedule does.

    - `LEARN`: one iteration of the learner.
    - `EVALUATE`: whole episodes of the encoder at its mode.
    - `REFINE`: fits a fresh decoder to the best policy of the stage, and begins the next stage.
    """

    LEARN = 0
    EVALUATE = 1
    REFINE = 2


class ScheduleStep(eqx.Module):
    """One step of a schedule; inside a `gorl.Schedule` all of them, stacked.

    **Attributes:**

    - `index`: steps that come before.
    - `phase`: what the step does, a `gorl.Phase`.
    - `stage`: the stage that it belongs to, counted from 0.
    - `progress`: the share of the run's iterations that come before, from 0 to 1.
    - `iterations`: iterations of the learner since the run began, when the step ends.
    - `evaluation`: evaluations that come before.
    - `is_final`: whether it evaluates the best policy, rather than the one that is being trained.
    """

    index: Int[Array | np.ndarray, "*steps"]
    phase: Int[Array | np.ndarray, "*steps"]
    stage: Int[Array | np.ndarray, "*steps"]
    progress: Float[Array | np.ndarray, "*steps"]
    iterations: Int[Array | np.ndarray, "*steps"]
    evaluation: Int[Array | np.ndarray, "*steps"]
    is_final: Bool[Array | np.ndarray, "*steps"]


class Schedule(eqx.Module):
    """The steps of a run, in order. It has a length, and iterating gives one `gorl.ScheduleStep` after the other.

    **Attributes:**

    - `steps`: all of them, stacked.
    """

    steps: ScheduleStep

    def __len__(self) -> int:
        return len(self.steps.index)

    def __iter__(self) -> Iterator[ScheduleStep]:
        columns, structure = jax.tree.flatten(self.steps)
        for row in zip(*columns, strict=True):
            yield jax.tree.unflatten(structure, map(np.asarray, row))

    def from_index(self, index: int) -> "Schedule":
        """The steps from that one on."""
        return jax.tree.map(lambda column: column[index:], self)

    @property
    def num_evaluations(self) -> int:
        """How many evaluations there are, that of the best policy included."""
        return int(self.steps.evaluation[-1]) + 1

    @property
    def curve(self) -> ScheduleStep:
        """The evaluations of the policy that is being trained, stacked: the points of the learning curve."""
        is_point = (self.steps.phase == Phase.EVALUATE) & ~self.steps.is_final
        return jax.tree.map(lambda column: column[is_point], self.steps)


def make_schedule(config: Config) -> Schedule:
    """The schedule of a run.

    Every stage is evaluated when it begins, at the config's interval, at its extra evaluations, and when it ends. Every
    stage but the last ends with a refinement. The run ends with an evaluation of the best policy on fresh episodes.
    """
    rows: list[tuple[Phase, int, int, int, bool]] = []
    iterations = evaluations = 0

    def evaluate(stage: int, is_final: bool = False) -> None:
        nonlocal evaluations
        rows.append((Phase.EVALUATE, stage, iterations, evaluations, is_final))
        evaluations += 1

    for stage, stage_iterations in enumerate(config.stage_iterations):
        evaluate(stage)
        for iteration in range(1, stage_iterations + 1):
            iterations += 1
            rows.append((Phase.LEARN, stage, iterations, evaluations, False))
            is_due = iteration % config.iterations_per_evaluation == 0 or iteration == stage_iterations
            if is_due or iterations in config.extra_iterations:
                evaluate(stage)
        if stage + 1 < config.num_stages:
            rows.append((Phase.REFINE, stage, iterations, evaluations, False))
    evaluate(config.num_stages - 1, is_final=True)
    *numbers, is_final = zip(*rows, strict=True)
    phase, stage, iteration, evaluation = np.asarray(numbers, np.int32)
    before = iteration - (phase == Phase.LEARN)
    return Schedule(
        ScheduleStep(
            index=np.arange(len(rows), dtype=np.int32),
            phase=phase,
            stage=stage,
            progress=(before / iterations).astype(np.float32),
            iterations=iteration,
            evaluation=evaluation,
            is_final=np.asarray(is_final),
        )
    )
