"""Strategies on benchmarks: scores with standard errors, and paired differences from one of them with intervals.

What is claimed
    A task's score is the mean over its items, the average the mean over tasks (Table 1 of the paper). Items are nested
    in tasks and crossed with seeds, since every seed of every strategy answers the same items. An interval covers the
    difference on further items of the same tasks and under further seeds; with one seed, the difference between the
    models that this seed produced.

How
    Items are resampled within each task (and within its groups), together for all strategies and seeds. Seeds are not
    resampled: two to five of them give too few different resamples, and their spread comes out too small by a factor
    (S − 1)/S, without the width that t quantiles need. Instead the variance between seeds is estimated, combined with
    the bootstrap of the items, and the result widened for its few degrees of freedom (``intervals.limits``).

Measured coverage
    Of nominal 95 % intervals, on simulated binary items with differences between items, between strategies on an item,
    between seeds (common to all tasks and task by task) and from run to run, 12,000 repeats each, standard error 0.2 %
    (``tests/evaluation/test_coverage.py`` holds 2,000 of each setting to 93 to 97 %)::

        seeds                               1      2      3      5
        one task of 200 items            95.1   93.4   95.9   96.6
        four tasks of 50 to 200 items    94.4   93.7   96.3   96.7
        the four without seed effects    94.8   95.2   96.2   96.4

    For a single task on which the two strategies differ at fewer than about ten items, coverage is lower, down to 85 %
    at three or four, since a resample cannot contain an outcome that was not observed.

When a difference is called real
    When its interval excludes 0, and also excludes it for the models at hand alone (two seeds that agree by chance make
    an interval narrower than the items alone allow), and at least six items differ: with fewer, the exact sign test
    cannot reach 5 %.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.evaluation.intervals import (
    Spread,
    TaskValues,
    column_of,
    excludes_zero,
    given_seeds,
    limits,
    p_value,
    resampled_deviations,
    spread_of,
)
from tokenclean.evaluation.paired_scores import ItemScores

FEWEST_DIFFERING = 6
"""Items that must differ before a difference can be real: with m of them a sign test's p is at least 2^(1−m)."""


@dataclass(frozen=True)
class Score:
    """``value``: a mean score in [0, 1]; ``error``: its standard error over items and, where there are more, seeds."""

    value: float
    error: float


@dataclass(frozen=True)
class Difference:
    """A strategy's score minus the control's, in [−1, 1], with its 95 % interval.

    ``p``: two-sided; the largest of the p that is dual to the interval, the same for the models at hand, and 2^(1−m) of
    the sign test, where m = ``items_differing`` is how many of ``items`` have another score in the mean over seeds.
    """

    value: float
    low: float
    high: float
    p: float
    items: int
    items_differing: int

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    @property
    def is_real(self) -> bool:
        """True when the interval excludes 0 and p, which is stricter, is below 5 %."""
        return excludes_zero(self.low, self.high) and self.p < 0.05


@dataclass(frozen=True, eq=False)
class AgainstControl:
    """A strategy against the control: ``tasks`` by name, and the ``average`` over them with the ``spread`` behind it.

    ``holm_p``: p of the average, adjusted by Holm's method for the number of strategies compared with the control.
    """

    tasks: Mapping[str, Difference]
    average: Difference
    holm_p: float
    spread: Spread

    @property
    def is_real_among_all(self) -> bool:
        """True when the average's difference is real, also after Holm's correction."""
        return self.average.is_real and self.holm_p < 0.05


@dataclass(frozen=True, eq=False)
class Comparison:
    """``scores[strategy][task]``, ``averages[strategy]`` for all strategies; ``differences[strategy]`` for all but the
    ``control``; ``items``: number of them by task."""

    control: str
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    items: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Score]]
    averages: Mapping[str, Score]
    differences: Mapping[str, AgainstControl]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, in the order of ``items``."""
        return tuple(self.items)


def compare(scores: ItemScores, control: str, *, draws: int = 10_000, seed: int = 0) -> Comparison:
    """Compare every strategy with ``control``; the module's docstring describes the method.

    ``draws``: number of bootstrap samples; ``seed`` of the resampling. A task's draws depend on its name and ``seed``
    only, so its interval stays the same when other tasks or strategies are added. Raises ValueError for an unknown
    control and fewer than 100 draws.
    """
    if control not in scores.strategies:
        known = ", ".join(map(repr, scores.strategies))
        raise ValueError(f"there are no scores of the control {control!r}; strategies: {known}")
    if draws < 100:
        raise ValueError(f"the ends of a 95 % interval need at least 100 draws, got {draws}")
    values = {task: TaskValues(scores.of_task(task), scores.strata(task)) for task in scores.tasks}
    by_task = {task: spread_of([value]) for task, value in values.items()}
    average = spread_of(list(values.values()))
    return Comparison(
        control=control,
        strategies=scores.strategies,
        seeds=scores.seeds,
        items={task: scores.items(task) for task in scores.tasks},
        scores={
            strategy: {task: _score(spread, column) for task, spread in by_task.items()}
            for column, strategy in enumerate(scores.strategies)
        },
        averages={strategy: _score(average, column) for column, strategy in enumerate(scores.strategies)},
        differences=_against_control(values, scores.strategies, control, draws, seed),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: p₍ᵢ₎ → max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎)."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _score(spread: Spread, column: int) -> Score:
    return Score(float(spread.mean[column]), float(spread.error[column]))


def _against_control(
    values: Mapping[str, TaskValues], strategies: Sequence[str], control: str, draws: int, seed: int
) -> dict[str, AgainstControl]:
    others = [strategy for strategy in strategies if strategy != control]
    if not others:
        return {}
    at = [strategies.index(strategy) for strategy in others]
    paired = {
        task: TaskValues(value.values[..., at] - value.values[..., [strategies.index(control)]], value.strata)
        for task, value in values.items()
    }
    deviations = {
        task: resampled_deviations(value, draws, np.random.default_rng([seed, zlib.crc32(task.encode())]))
        for task, value in paired.items()
    }
    by_task = {task: _differences([paired[task]], spread_of([paired[task]]), deviations[task]) for task in paired}
    tasks = list(paired.values())
    spread = spread_of(tasks)
    average = _differences(tasks, spread, np.mean(list(deviations.values()), axis=0))
    adjusted = holm([difference.p for difference in average])
    return {
        strategy: AgainstControl(
            tasks={task: differences[column] for task, differences in by_task.items()},
            average=average[column],
            holm_p=adjusted[column],
            spread=column_of(spread, column),
        )
        for column, strategy in enumerate(others)
    }


def _differences(tasks: Sequence[TaskValues], spread: Spread, deviations: np.ndarray) -> list[Difference]:
    low, high = limits(spread, deviations)
    differing = np.sum([(np.abs(task.values.mean(axis=0)) > 1e-12).sum(axis=0) for task in tasks], axis=0)
    items = sum(task.values.shape[1] for task in tasks)
    p = np.maximum(p_value(spread, deviations), p_value(given_seeds(spread), deviations))
    p = np.maximum(p, np.minimum(1.0, 2.0 ** (1.0 - differing)))
    return [
        Difference(*map(float, numbers), items=items, items_differing=int(count))
        for *numbers, count in zip(spread.mean, low, high, p, differing, strict=True)
    ]
