"""The schedule of a run: which chunk of work follows which.

It is made on the host from the config alone, and handed to the scan as its inputs. It must not live in the carried
state: there `vmap` over seeds would give it a batch axis, and a branch on it would become a select that runs every
branch.
"""

import enum
from collections.abc import Iterator

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._config import Config


class Phase(enum.IntEnum):
    """What a chunk of a run does."""

    LEARN = 0  # one iteration of the learner
    EVALUATE = 1  # whole episodes of the encoder at its mode
    REFINE = 2  # fit a fresh decoder to the best encoder of the stage, and start the next stage


class Chunk(eqx.Module):
    """One chunk of a run, or all of them stacked."""

    position: Int[Array | np.ndarray, "*chunks"]  # how many chunks come before
    phase: Int[Array | np.ndarray, "*chunks"]
    stage: Int[Array | np.ndarray, "*chunks"]
    progress: Float[Array | np.ndarray, "*chunks"]  # the share of the run's iterations that come before
    iterations: Int[Array | np.ndarray, "*chunks"]  # of the learner, since the run began, when this chunk ends
    evaluation: Int[Array | np.ndarray, "*chunks"]  # evaluations before this chunk
    is_final: Bool[
        Array | np.ndarray, "*chunks"
    ]  # an evaluation of the kept policy, rather than of the one being trained

    def __len__(self) -> int:
        return len(self.position)

    def __iter__(self) -> Iterator["Chunk"]:
        return self.from_position(0)

    def from_position(self, position: int) -> Iterator["Chunk"]:
        """The single chunks, from that position on."""
        for index in range(position, len(self)):
            yield Chunk(*(np.asarray(getattr(self, name)[index]) for name in self.__dataclass_fields__))


def schedule(config: Config) -> Chunk:
    """The chunks of a run, stacked.

    Every stage is evaluated when it begins, at the config's interval, at its extra evaluations, and when it ends. Every
    stage but the last ends with a refinement. The run ends with an evaluation of the kept policy on fresh episodes.
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
    return Chunk(
        position=np.arange(len(rows), dtype=np.int32),
        phase=phase,
        stage=stage,
        progress=(before / iterations).astype(np.float32),
        iterations=iteration,
        evaluation=evaluation,
        is_final=np.asarray(is_final),
    )
