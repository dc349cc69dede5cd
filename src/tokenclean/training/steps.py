"""How many optimizer steps a round takes; known before any weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenclean.recipe import TrainingSettings


@dataclass(frozen=True)
class StepPlan:
    """``batch_size``: conversations a step. ``steps``: optimizer steps over all epochs. ``warmup_steps``: of those,
    the rising part of the schedule, whose very first step has a learning rate of 0. ``effective_steps``: steps with
    a learning rate above 0."""

    batch_size: int
    steps: int
    warmup_steps: int

    @property
    def effective_steps(self) -> int:
        return self.steps - (1 if self.warmup_steps else 0)


def plan_steps(rows: int, settings: TrainingSettings) -> StepPlan:
    """The largest batch, up to ``batch_size``, with at least ``minimum_steps`` effective steps, if any has."""
    for batch_size in range(settings.batch_size, 0, -1):
        steps = math.ceil(rows / batch_size) * settings.epochs
        plan = StepPlan(batch_size, steps, math.ceil(steps * settings.warmup_ratio))
        if plan.effective_steps >= settings.minimum_steps:
            return plan
    return StepPlan(1, rows * settings.epochs, math.ceil(rows * settings.epochs * settings.warmup_ratio))
