"""How far a mean over items and seeds may lie from the truth, where each seed answers the same items.

A score of item i under seed s is taken as μ + aₛ + bᵢ + eₛᵢ: the seeds are drawn from all seeds, the items of a task
from all such items, the tasks are those that they are. A mean over n items and S seeds then has the variance

    σ²_b/n + σ²_a/S + σ²_e/(nS).

The variance over items of the mean over seeds estimates the first and the third term, and the variance over seeds of
the mean over items the second and the third; the interaction, known from the residuals, would count twice and is taken
from the items. Everything works on K columns at once: strategies, their differences, or repeats of a simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Of the intervals."""

_NORMAL = NormalDist()
# Floats in the count matrix of a block of resamples.
_BLOCK = 1 << 22
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class TaskValues:
    """``values``: float64, shape (seeds, items, K); ``strata``: item numbers of each part that is resampled by itself,
    at least two in each, all items once."""

    values: np.ndarray
    strata: Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Spread:
    """``mean`` over items, seeds and tasks, and the estimated terms of its variance; all float64, shape (K,).

    ``items``: (σ²_b + σ²_e/S)/n, over items of the mean over seeds. ``interaction``: its part σ²_e/(nS). ``seeds``:
    (σ²_a + σ²_e/n)/S, over seeds of the mean over items. With one seed, the last two are 0 and all speaks of that seed
    alone. ``item_degrees``: Satterthwaite's degrees of freedom of ``items``, inf where nothing varies.
    """

    mean: np.ndarray
    items: np.ndarray
    interaction: np.ndarray
    seeds: np.ndarray
    item_degrees: np.ndarray
    seed_count: int

    @property
    def item_part(self) -> np.ndarray:
        """σ²_b/n: what more seeds leave, never below 0."""
        return np.maximum(self.items - self.interaction, 0.0)

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean."""
        return np.sqrt(self.item_part + self.seeds)


def spread_of(tasks: Sequence[TaskValues]) -> Spread:
    """Of the mean over tasks of each task's mean over its items.

    Within a task of parts g with n_g of its n items each, a term of the variance is Σ (n_g/n)² · that of the part.
    """
    count = len(tasks)
    seed_means = np.mean([task.values.mean(axis=1) for task in tasks], axis=0)  # (S, K)
    seed_count, columns = seed_means.shape
    items, interaction, curvature = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    for task in tasks:
        for stratum in task.strata:
            part = task.values[:, stratum]
            size = len(stratum)
            weight = size / (task.values.shape[1] * count)
            over_seeds = part.mean(axis=0)
            variance = weight**2 * over_seeds.var(axis=0, ddof=1) / size
            items += variance
            curvature += variance**2 / (size - 1)
            if seed_count > 1:
                residual = part - over_seeds - part.mean(axis=1, keepdims=True) + over_seeds.mean(axis=0)
                squares = np.square(residual).sum(axis=(0, 1))
                interaction += weight**2 * squares / ((seed_count - 1) * (size - 1) * seed_count * size)
    seeds = seed_means.var(axis=0, ddof=1) / seed_count if seed_count > 1 else np.zeros(columns)
    degrees = np.divide(items**2, curvature, out=np.full(columns, math.inf), where=curvature > 0)
    return Spread(seed_means.mean(axis=0), items, interaction, seeds, degrees, seed_count)


def resampled_deviations(task: TaskValues, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Deviations of the task's mean in ``draws`` bootstrap samples of its items, float64, shape (draws, K).

    Items are drawn with replacement within each stratum, the same for all columns and seeds. A stratum's deviations are
    stretched by sqrt(n/(n − 1)), so that their variance is the unbiased one.
    """
    over_seeds = task.values.mean(axis=0)
    size = len(over_seeds)
    deviations = np.zeros((draws, over_seeds.shape[1]))
    for stratum in task.strata:
        n = len(stratum)
        centred = over_seeds[stratum] - over_seeds[stratum].mean(axis=0)
        centred *= math.sqrt(n / (n - 1)) / size
        step = max(1, _BLOCK // n)
        for start in range(0, draws, step):
            rows = min(step, draws - start)
            places = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
            counts = np.bincount(places.reshape(-1), minlength=rows * n).reshape(rows, n)
            deviations[start : start + rows] += counts.astype(np.float64) @ centred
    return deviations


def limits(spread: Spread, deviations: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the interval around ``spread.mean``, float64, shape (K,) each.

    ``deviations``: bootstrap deviations of the mean, shape (draws, K). Their quantiles q₋, q₊ carry the items; they are
    shrunk to ``item_part``, joined with the seeds by the root of the sum of squares, and stretched for the few degrees
    of freedom by c (``critical``) over the normal quantile z::

        mean ∓ (c/z) · sqrt(item_part/items · q∓² + z² · seeds)

    """
    z = _NORMAL.inv_cdf((1 + level) / 2)
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2], axis=0)
    item_part = spread.item_part
    shrinkage = np.divide(item_part, spread.items, out=np.zeros_like(item_part), where=spread.items > 0)
    stretch = critical(item_part, spread.seeds, spread.item_degrees, spread.seed_count, level) / z
    below, above = (
        stretch * np.sqrt(shrinkage * np.square(side) + z**2 * spread.seeds)
        for side in (np.minimum(low, 0.0), np.maximum(high, 0.0))
    )
    return spread.mean - below, spread.mean + above


def critical(
    item_part: np.ndarray, seeds: np.ndarray, item_degrees: np.ndarray, seed_count: int, level: float = LEVEL
) -> np.ndarray:
    """By what to multiply sqrt(item_part + seeds) for half an interval's width, shape (K,).

    With the seeds' share w = seeds/(item_part + seeds) it runs from the t quantile of the items' degrees of freedom, at
    w = 0, to that of S − 1 degrees, at w = 1:

        c = t_items + (t_seeds − t_items) · (1 − (1 − w²)⁴)

    No exact c is known. Satterthwaite's, a t quantile of (S − 1)/w² degrees, covers down to 87 % for two seeds, since
    two seeds that agree by chance make their own share look small; Cochran and Cox's, linear in w, up to 98 %. The
    power is chosen so that whatever the true share, 93.5 to 96.7 % of 95 % intervals cover for two seeds, 95 to 96.8 %
    for three and more (items' variance known, normal errors).
    """
    from scipy.special import stdtrit

    t_items = stdtrit(item_degrees, (1 + level) / 2)
    if seed_count == 1:
        return t_items
    t_seeds = stdtrit(seed_count - 1, (1 + level) / 2)
    total = item_part + seeds
    share = np.divide(seeds, total, out=np.zeros_like(total), where=total > 0)
    return t_items + (t_seeds - t_items) * (1 - (1 - share**2) ** 4)


def p_value(spread: Spread, deviations: np.ndarray) -> np.ndarray:
    """The smallest α whose interval of level 1 − α leaves out 0, two-sided, float64, shape (K,).

    Arguments as of ``limits``. No smaller than the bootstrap resolves, 2/draws; 1 where no interval leaves out 0.
    """
    smallest = 2 / len(deviations)
    values = np.ones(len(spread.mean))
    for column in range(len(values)):
        one, its_deviations = column_of(spread, column), deviations[:, [column]]

        def leaves_out_zero(alpha: float, one: Spread = one, its_deviations: np.ndarray = its_deviations) -> bool:
            low, high = limits(one, its_deviations, 1 - alpha)
            return excludes_zero(float(low[0]), float(high[0]))

        below, above = smallest, 0.9999
        if leaves_out_zero(below):
            values[column] = below
        elif leaves_out_zero(above):
            while above / below > 1.001:
                middle = math.sqrt(below * above)
                below, above = (below, middle) if leaves_out_zero(middle) else (middle, above)
            values[column] = above
    return values


def excludes_zero(low: float, high: float) -> bool:
    """True when 0 lies outside the interval, by more than differences of scores in [0, 1] can be rounded."""
    return low > _ROUNDING or high < -_ROUNDING


def given_seeds(spread: Spread) -> Spread:
    """The same mean, as an estimate for the models that the seeds run gave: only its items are a sample."""
    nothing = np.zeros_like(spread.items)
    return replace(spread, interaction=nothing, seeds=nothing, seed_count=1)


def column_of(spread: Spread, column: int) -> Spread:
    """One of the K columns, K = 1."""
    at = slice(column, column + 1)
    return Spread(
        mean=spread.mean[at],
        items=spread.items[at],
        interaction=spread.interaction[at],
        seeds=spread.seeds[at],
        item_degrees=spread.item_degrees[at],
        seed_count=spread.seed_count,
    )
