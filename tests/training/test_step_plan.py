from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from tokenclean.recipe import TrainingSettings
from tokenclean.training.step_plan import SchedulePart, StepPlan, plan_parts, plan_steps

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


# --- one schedule over several trainings ---------------------------------------------------------------------------

ROWS = st.lists(st.integers(1, 60), min_size=2, max_size=5)


def plans_of(rows: list[int], actual: list[int], settings: TrainingSettings) -> list[StepPlan]:
    return [plan_steps(n, settings, part) for n, part in zip(actual, plan_parts(rows, settings), strict=True)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(
    rows=ROWS,
    drawn=st.builds(
        TrainingSettings,
        batch_size=st.integers(1, 20),
        epochs=st.integers(1, 2),
        minimum_steps=st.integers(0, 20),
        warmup_ratio=st.sampled_from([0.0, 0.03, 0.5]),
    ),
)
def test_trainings_on_all_rows_take_the_steps_of_one_schedule(schedule, rows, drawn):
    settings = drawn.model_copy(update={"schedule": schedule})
    warmup_ratio, minimum_steps = settings.warmup_ratio, settings.minimum_steps
    plans = plans_of(rows, rows, settings)
    total = sum(plan.steps for plan in plans)
    assert [plan.position(step) for plan in plans for step in range(plan.steps)] == list(range(total))
    assert {plan.warmup_steps for plan in plans} == {math.ceil(total * warmup_ratio)}
    rates = learning_rates(schedule, math.ceil(total * warmup_ratio), total)
    for plan in plans:
        assert plan.effective_steps == sum(rate > 0 for rate in rates[plan.part.start : plan.part.end])
        if plan.effective_steps < minimum_steps:
            assert plan.batch_size == 1


@given(rows=ROWS, data=st.data(), batch_size=st.integers(1, 20), minimum_steps=st.integers(0, 20))
def test_with_fewer_rows_every_training_stays_within_its_part(rows, data, batch_size, minimum_steps):
    settings = settings_of(batch_size=batch_size, minimum_steps=minimum_steps, warmup_ratio=0.1)
    actual = [data.draw(st.integers(1, count)) for count in rows]
    plans, parts = plans_of(rows, actual, settings), plan_parts(rows, settings)
    assert [plan.part for plan in plans] == parts
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert {part.total for part in parts} == {parts[-1].end}
    for plan in plans:
        positions = [plan.position(step) for step in range(plan.steps)]
        assert positions[0] == plan.part.start
        assert np.allclose(np.diff([*positions, plan.part.end]), (plan.part.end - plan.part.start) / plan.steps)
        assert positions[-1] < plan.part.end <= plan.part.total


def test_a_training_with_a_schedule_to_itself_takes_all_of_it():
    plan = plan_steps(100, settings_of(batch_size=10))
    assert plan.part == SchedulePart(0, 10, 10)
    assert [plan.position(step) for step in range(10)] == list(range(10))


def test_a_later_training_loses_no_step_to_the_warm_up():
    settings = settings_of(batch_size=48, minimum_steps=4, warmup_ratio=0.1)
    first, second = plans_of([40, 40], [40, 40], settings)
    assert (first.batch_size, first.steps, first.effective_steps) == (9, 5, 4)
    assert (second.batch_size, second.steps, second.effective_steps) == (13, 4, 4)
