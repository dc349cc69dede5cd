"""Confidence intervals of a mean over items and seeds, where every seed answers the same items.

The score of item i under seed s is modelled as μ + aₛ + bᵢ + eₛᵢ: seeds are drawn from all seeds, the items of a task
from all such items, and the tasks are fixed. A mean over n items and S seeds then has the variance

    σ²_b/n + σ²_a/S + σ²_e/(nS).

The variance over items of the mean over seeds estimates the first and the third term, and the variance over seeds of
the mean over items the second and the third; the interaction would count twice, so its estimate from the residuals is
subtracted from the items. Everything works on K columns at once: strategies, their differences, or repeats of a
simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Confidence level of the intervals."""

_NORMAL = NormalDist()
# Floats in the count matrix of a block of resamples.
_BLOCK = 1 << 22
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class TaskValues:
    """``values``: float64, shape (seeds, items, K); ``strata``: item numbers of each part that is resampled separately,
    at least two in each, every item once."""

    values: np.ndarray
    strata: Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Spread:
    """``mean`` over items, seeds and tasks, and the estimated terms of its variance; all float64, shape (K,).

    ``items``: (σ²_b + σ²_e/S)/n, from the variance over items of the mean over seeds. ``interaction``: its part
    σ²_e/(nS). ``seeds``: (σ²_a + σ²_e/n)/S, from the variance over seeds of the mean over items. With one seed, the
    last two are 0 and everything describes that seed alone. ``item_degrees``: Satterthwaite's degrees of freedom of
    ``items``, inf where nothing varies.
    """

    mean: np.ndarray
    items: np.ndarray
    interaction: np.ndarray
    seeds: np.ndarray
    item_degrees: np.ndarray
    seed_count: int

    @property
    def item_part(self) -> np.ndarray:
        """σ²_b/n, the variance that no number of seeds removes; never below 0."""
        return np.maximum(self.items - self.interaction, 0.0)

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean."""
        return np.sqrt(self.item_part + self.seeds)


def spread_of(tasks: Sequence[TaskValues]) -> Spread:
    """Spread of the mean over tasks of each task's mean over its items.

    In a task whose parts g have n_g of its n items, each term of the variance is Σ (n_g/n)² · that of the part.
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
    scaled by sqrt(n/(n − 1)), so that their variance is unbiased.
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

    ``deviations``: bootstrap deviations of the mean, shape (draws, K). Their quantiles q₋, q₊ reflect the items; they
    are shrunk to ``item_part``, combined with the seeds by the root of the sum of squares, and widened for the few
    degrees of freedom by c (``critical``) over the normal quantile z::

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
    """Factor of sqrt(item_part + seeds) that gives half an interval's width, shape (K,).

    With the seeds' share w = seeds/(item_part + seeds) it goes from the t quantile of the items' degrees of freedom, at
    w = 0, to that of S − 1 degrees, at w = 1:

        c = t_items + (t_seeds − t_items) · (1 − (1 − w²)⁴)

    No exact c is known. Satterthwaite's, a t quantile of (S − 1)/w² degrees, covers as little as 87 % for two seeds,
    since two seeds that agree by chance make their own share look small; Cochran and Cox's, linear in w, up to 98 %.
    The power is chosen so that for any true share 93.5 to 96.7 % of 95 % intervals cover for two seeds, 95 to 96.8 %
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


@dataclass(frozen=True)
class Interval:
    """A mean over ``items`` values with its 95 % interval [``low``, ``high``]."""

    mean: float
    low: float
    high: float
    items: int


def mean_interval(values: np.ndarray, *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of one value an item, float, shape (n,), with the bootstrap interval of ``limits``, items drawn by ``seed``.

    For a paired comparison, ``values`` are differences item by item. Raises ValueError for fewer than two items,
    another shape, or a value that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least 2 finite values in one dimension, got shape {values.shape}")
    task = TaskValues(values[None, :, None], [np.arange(len(values))])
    spread = spread_of([task])
    low, high = limits(spread, resampled_deviations(task, draws, np.random.default_rng(seed)))
    return Interval(spread.mean.item(), low.item(), high.item(), len(values))


def p_value(spread: Spread, deviations: np.ndarray) -> np.ndarray:
    """The smallest α whose interval of level 1 − α excludes 0, two-sided, float64, shape (K,).

    Arguments as for ``limits``. At least 2/draws, which the bootstrap can resolve; 1 where no interval excludes 0.
    """
    columns = range(len(spread.mean))
    return np.array([_smallest_alpha(column_of(spread, column), deviations[:, [column]]) for column in columns])


def _smallest_alpha(spread: Spread, deviations: np.ndarray) -> float:
    """``p_value`` of a single column, by bisection."""

    def excludes(alpha: float) -> bool:
        low, high = limits(spread, deviations, 1 - alpha)
        return excludes_zero(low.item(), high.item())

    below, above = 2 / len(deviations), 0.9999
    if excludes(below):
        return below
    if not excludes(above):
        return 1.0
    return least_above(below, above, excludes, 1.001)


def least_above(below: float, above: float, holds: Callable[[float], bool], ratio: float) -> float:
    """The least number up to ``above`` at which ``holds``, within a factor ``ratio``, by geometric bisection.

    It holds at ``above`` and not at ``below``, both > 0.
    """
    while above / below > ratio:
        middle = math.sqrt(below * above)
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above


def excludes_zero(low: float, high: float) -> bool:
    """True when 0 is outside the interval, by more than the rounding of differences of scores in [0, 1]."""
    return low > _ROUNDING or high < -_ROUNDING


def given_seeds(spread: Spread) -> Spread:
    """The same mean as an estimate for the trained models at hand: only its items are a sample."""
    zeros = np.zeros_like(spread.items)
    return replace(spread, interaction=zeros, seeds=zeros, seed_count=1)


def column_of(spread: Spread, column: int) -> Spread:
    """One of the K columns, K = 1."""
    arrays = {name: values[column : column + 1] for name, values in vars(spread).items() if name != "seed_count"}
    return replace(spread, **arrays)


@dataclass(frozen=True)
class ShareInterval:
    """``hits`` of ``total``, their ``share``, and its 95 % interval [``low``, ``high``]; the last three NaN for a
    ``total`` of 0."""

    hits: int
    total: int
    share: float
    low: float
    high: float


def share_interval(hits: np.ndarray, totals: np.ndarray) -> ShareInterval:
    """The share Σ hits / Σ totals of things that come in groups (sentences of rows), after Korn and Graubard (Survey
    Methodology 24, 1998, pp. 193–201): Clopper and Pearson's interval of the effective sample size.

    ``hits``, ``totals``: integers, shape (m,), one a group, 0 <= hits <= totals. With p the share, n the number of
    things and v the variance of p from the groups' residuals h − p t, m / (m − 1) · Σ (h − p t)² / n², the effective
    size is p (1 − p) / v · (t_{n−1} / t_{m−1})², at most n. Where the groups do not differ at all (p = 0 or 1), v says
    nothing: each group counts as one thing then, and so does all of a single group. Raises ValueError for other
    arrays.
    """
    from scipy.special import betaincinv, stdtrit

    hits, totals = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if hits.ndim != 1 or hits.shape != totals.shape or (hits < 0).any() or (hits > totals).any():
        raise ValueError(f"expected 0 <= hits <= totals of one shape (m,), found {hits.shape} and {totals.shape}")
    hits, totals = hits[totals > 0], totals[totals > 0]
    groups, count = len(totals), float(totals.sum())
    if not groups:
        return ShareInterval(0, 0, math.nan, math.nan, math.nan)
    share = float(hits.sum()) / count
    size = float(groups)
    variance = 0.0
    if groups > 1:
        variance = groups / (groups - 1) * float(np.square(hits - share * totals).sum()) / count**2
    if variance > 0 and 0 < share < 1:
        tail = (1 + LEVEL) / 2
        factor = float(stdtrit(count - 1, tail) / stdtrit(groups - 1, tail))
        size = min(count, share * (1 - share) / variance * factor**2)
    found, tail = size * share, (1 - LEVEL) / 2
    low = float(betaincinv(found, size - found + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(found + 1, size - found, 1 - tail)) if share < 1 else 1.0
    return ShareInterval(int(hits.sum()), int(count), share, low, high)
