"""How often the 95 % intervals hold the true difference, on simulated benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from tokenclean.evaluation.intervals import TaskValues, critical, limits, resampled_deviations, spread_of

REPEATS = 2000
DRAWS = 2000
FOUR_TASKS = (50, 100, 150, 200)
_EFFECT = 0.15
_ITEM, _STRATEGY_ON_ITEM, _RUN = 1.0, 0.4, 0.5
_CDF = np.vectorize(NormalDist().cdf)


def simulate(
    sizes: Sequence[int], seeds: int, of_seeds: float, rng: np.random.Generator
) -> tuple[list[TaskValues], np.ndarray]:
    """``REPEATS`` experiments of two strategies, as columns of differences, and the true differences.

    An item is solved when a normal sum exceeds 0: the task's level, the strategy's effect, the item, the strategy on
    the item, the strategy's seed on all tasks and on this task (``of_seeds`` each), and each single run. With several
    seeds the truth is over all seeds and items; with one it is over all items for that seed's models.
    """
    over_items = _ITEM**2 + _STRATEGY_ON_ITEM**2 + _RUN**2
    on_all_tasks = rng.normal(0, of_seeds, (2, seeds, 1, REPEATS))
    tasks, truth = [], np.zeros(REPEATS)
    for number, size in enumerate(sizes):
        level = 0.3 * math.cos(number)
        items = rng.normal(level, _ITEM, (size, REPEATS))
        shift = on_all_tasks + rng.normal(0, of_seeds, (2, seeds, 1, REPEATS))
        solved, chances = [], []
        for strategy in range(2):
            on_items = items + _EFFECT * strategy + rng.normal(0, _STRATEGY_ON_ITEM, (size, REPEATS))
            solved.append(on_items + shift[strategy] + rng.normal(0, _RUN, (seeds, size, REPEATS)) > 0)
            mean = level + _EFFECT * strategy + (shift[strategy, 0, 0] if seeds == 1 else 0.0)
            spread = over_items + (2 * of_seeds**2 if seeds > 1 else 0.0)
            chances.append(_CDF(mean / math.sqrt(spread)))
        tasks.append(TaskValues(solved[1].astype(float) - solved[0], [np.arange(size)]))
        truth += (chances[1] - chances[0]) / len(sizes)
    return tasks, truth


def coverage(sizes: Sequence[int], seeds: int, of_seeds: float, seed: int = 0) -> float:
    """Share of ``REPEATS`` experiments whose interval holds the truth."""
    rng = np.random.default_rng(seed)
    tasks, truth = simulate(sizes, seeds, of_seeds, rng)
    deviations = np.mean([resampled_deviations(task, DRAWS, rng) for task in tasks], axis=0)
    low, high = limits(spread_of(tasks), deviations)
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(("sizes", "of_seeds"), [((200,), 0.1), (FOUR_TASKS, 0.1), (FOUR_TASKS, 0.0)])
def test_nominal_95_percent_cover_93_to_97(sizes, of_seeds, seeds):
    assert 0.93 <= coverage(sizes, seeds, of_seeds) <= 0.97


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8])
def test_whatever_the_share_of_the_seeds_is(seeds):
    """Normal errors, the items' variance known: the average over the spread that the seeds happen to show."""
    rng = np.random.default_rng(0)
    spread = rng.chisquare(seeds - 1, 20_000) / (seeds - 1)
    covered = []
    for share in (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0):
        part = np.full_like(spread, 1 - share)
        half = _critical(part, share * spread, seeds) * np.sqrt(part + share * spread)
        covered.append(np.mean(2 * _CDF(half) - 1))
    assert 0.933 <= min(covered) <= max(covered) <= 0.97


def _critical(item_part: np.ndarray, of_seeds: np.ndarray, seeds: int) -> np.ndarray:
    """For infinitely many degrees of freedom of the items, whose quantile is sought once."""
    one = critical(np.zeros(1), np.ones(1), np.array([math.inf]), seeds)[0]
    assert one == pytest.approx(stats.t.ppf(0.975, seeds - 1))
    return critical(item_part, of_seeds, np.full(len(item_part), math.inf), seeds)
