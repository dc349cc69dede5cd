"""How many optimizer steps a round takes and their positions on the learning-rate schedule, before any weight is
loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokenclean.recipe import TrainingSettings


@dataclass(frozen=True)
class SchedulePart:
    """What one training takes of a learning-rate schedule: positions ``start`` to ``end`` (excluded) of ``total``.

    Positions count planned optimizer steps, so a training that has a schedule to itself takes 0 to ``total``.
    """

    start: int
    end: int
    total: int


@dataclass(frozen=True)
class StepPlan:
    """``batch_size``: conversations a step. ``steps``: optimizer steps over all epochs. ``part``: of the schedule.
    ``warmup_steps``: positions of the whole schedule's rising part, of which the first has a learning rate of 0.
    ``effective_steps``: steps with a learning rate above 0."""

    batch_size: int
    steps: int
    warmup_steps: int
    part: SchedulePart

    @property
    def effective_steps(self) -> int:
        return self.steps - (1 if self.warmup_steps and self.part.start == 0 else 0)

    def position(self, step: int) -> float:
        """Where on the schedule the step with this number, from 0, has its learning rate.

        The steps are spread evenly over the part. Where they are as many as planned, each has a position of its own;
        fewer or more are stretched or compressed, never cut: the part then starts and ends at the rates planned for it,
        however many rows were kept, and the rate does not jump from one part to the next. All steps are before
        ``part.end``, and so before the end of the schedule, where the rate is 0.
        """
        return self.part.start + step * (self.part.end - self.part.start) / self.steps


def plan_steps(rows: int, settings: TrainingSettings, part: SchedulePart | None = None) -> StepPlan:
    """The largest batch, up to ``batch_size``, with at least ``minimum_steps`` effective steps, if there is one.

    ``part``: of a schedule over several trainings (``plan_parts``); by default the training has its own schedule.
    """
    batch_size, steps = _batches(rows, settings, is_first=part is None or part.start == 0)
    part = part or SchedulePart(0, steps, steps)
    return StepPlan(batch_size, steps, math.ceil(part.total * settings.warmup_ratio), part)


def plan_parts(rows: Sequence[int], settings: TrainingSettings) -> list[SchedulePart]:
    """One schedule for several trainings, in their order: the part of each has the steps of all its ``rows``.

    How many of them will have a token to train on is not known yet: ``StepPlan.position`` makes up for the difference.
    """
    counts = [_batches(count, settings, is_first=number == 0)[1] for number, count in enumerate(rows)]
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [SchedulePart(end - count, end, ends[-1]) for count, end in zip(counts, ends, strict=True)]


def _batches(rows: int, settings: TrainingSettings, *, is_first: bool) -> tuple[int, int]:
    """Batch size and steps. ``is_first``: the training starts its schedule, where a warm-up's first rate is 0."""
    idle = 1 if is_first and settings.warmup_ratio > 0 else 0
    for batch_size in range(settings.batch_size, 0, -1):
        steps = math.ceil(rows / batch_size) * settings.epochs
        if steps - idle >= settings.minimum_steps:
            return batch_size, steps
    return 1, rows * settings.epochs
