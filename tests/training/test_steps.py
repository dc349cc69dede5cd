from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from tokenclean.recipe import TrainingSettings
from tokenclean.training.steps import plan_steps

SCHEDULES = ["linear", "cosine", "constant_with_warmup"]


def settings_of(**values: Any) -> TrainingSettings:
    return TrainingSettings(**values)


def learning_rates(schedule: str, warmup_steps: int, steps: int) -> list[float]:
    """What transformers applies at each optimizer step, for a learning rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    epochs=st.integers(1, 3),
    minimum_steps=st.integers(0, 40),
    warmup_ratio=st.sampled_from([0.0, 0.03, 0.1, 0.5, 0.99]),
)
def test_the_plan_is_that_of_brute_force(schedule, rows, batch_size, epochs, minimum_steps, warmup_ratio):
    settings = settings_of(
        batch_size=batch_size,
        epochs=epochs,
        minimum_steps=minimum_steps,
        warmup_ratio=warmup_ratio,
        schedule=schedule,
    )
    candidates = {}
    for size in range(1, batch_size + 1):
        steps = sum(len(range(0, rows, size)) for _ in range(epochs))
        rates = learning_rates(schedule, math.ceil(steps * warmup_ratio), steps)
        candidates[size] = (steps, sum(rate > 0 for rate in rates))
    sufficient = [size for size, (_, effective) in candidates.items() if effective >= minimum_steps]
    plan = plan_steps(rows, settings)
    assert plan.batch_size == (max(sufficient) if sufficient else 1)
    assert (plan.steps, plan.effective_steps) == candidates[plan.batch_size]
    assert plan.warmup_steps == math.ceil(plan.steps * warmup_ratio)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(48, (48, 1, 1, 0)), (49, (48, 2, 1, 1)), (10_000, (48, 209, 7, 208)), (1, (48, 1, 1, 0))],
)
def test_the_paper_settings(rows, expected):
    """48 rows a step; the first step of the warm-up moves nothing."""
    plan = plan_steps(rows, settings_of())
    assert (plan.batch_size, plan.steps, plan.warmup_steps, plan.effective_steps) == expected


def test_a_minimum_that_no_batch_reaches_gives_batches_of_one():
    plan = plan_steps(5, settings_of(minimum_steps=100, epochs=2))
    assert (plan.batch_size, plan.steps, plan.effective_steps) == (1, 10, 9)


def test_only_as_small_as_needed():
    plan = plan_steps(100, settings_of(minimum_steps=10, warmup_ratio=0.0))
    assert (plan.batch_size, plan.steps, plan.effective_steps) == (11, 10, 10)
    assert plan_steps(1000, settings_of(minimum_steps=10, warmup_ratio=0.0)).batch_size == 48
