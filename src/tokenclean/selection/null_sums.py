"""Which sentences have a lower sum of scores than chance gives, where chance is known from scores that say nothing.

A token's score is mostly noise, so it is judged together with its sentence. Sums over sentences of unequal length
compare after division by what their standard deviation is under the null.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.ragged import Ragged

QUANTILE = 0.01
"""Share of the null's sums below the cut."""

_CHANCE = 0.05
"""Groups below the cut are more than the null predicts where it gives so many with a lower probability than this."""


@dataclass(frozen=True)
class SumNull:
    """Sums of scores over groups of tokens under the null.

    ``mean``, ``deviation``: of a token's score, in its unit. ``correlation``: of two tokens of one group, in [0, 1].
    ``cut``: the ``QUANTILE`` of the standardized sums, of which there are ``sums``.
    """

    mean: float
    deviation: float
    correlation: float
    cut: float
    sums: int

    def standardize(self, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """(Σ − n·mean) / (deviation · √(n (1 + (n − 1) · correlation))) of groups of n tokens; (G,) and (G,)."""
        return (sums - sizes * self.mean) / (self.deviation * np.sqrt(sizes * (1 + (sizes - 1) * self.correlation)))

    @property
    def is_known(self) -> bool:
        """Whether there are sums enough to know the quantile, and they are not all alike."""
        return self.sums >= 1 / QUANTILE and self.deviation > 0


@dataclass(frozen=True, eq=False)
class JudgedGroups:
    """``standardized``: float64, aligned, the standardized sum of each token's group, NaN for a token of no group or
    without a score. ``is_below``: bool, aligned, its group is below the null's cut. ``groups``, ``below``: number of
    groups judged, and of those below."""

    standardized: Ragged
    is_below: Ragged
    groups: int
    below: int

    @property
    def expected(self) -> float:
        """Number of groups below the cut that the null predicts."""
        return QUANTILE * self.groups

    @property
    def is_found(self) -> Ragged:
        """``is_below`` where that is more than chance gives, else nowhere."""
        return self.is_below if self.is_more_than_chance else self.is_below.map_values(np.zeros_like)

    @property
    def is_more_than_chance(self) -> bool:
        """Whether the null would give as many groups below the cut with a probability under 5 % (binomial)."""
        from scipy.stats import binom

        return self.below > 0 and float(binom.sf(self.below - 1, self.groups, QUANTILE)) < _CHANCE


def fit_null(scores: Sequence[Ragged], group: Ragged) -> SumNull:
    """The null's sums, from columns of ``scores`` (float, NaN where there is none) that say nothing.

    ``group``: int64, the number of each token's group, below 0 for none. All aligned. Moments: mean and variance of all
    scores of tokens in a group; the correlation is the mean product of two different tokens of a group over the
    variance, at least 0. Without it the deviation of a sum of n tokens is deviation · √n.

    Raises ValueError for columns that are not aligned, or without any score in a group.
    """
    parts = [_sums(column, group) for column in scores]
    values = np.concatenate([part.values for part in parts])
    if not len(values):
        raise ValueError("no token of a group has a score under the null")
    mean, variance = float(values.mean()), float(values.var())
    sums = np.concatenate([part.sums - part.sizes * mean for part in parts])
    squares = np.concatenate([part.squares_about(mean) for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    pairs = float((sizes * (sizes - 1)).sum())
    products = float((sums**2 - squares).sum())
    correlation = min(1.0, max(0.0, products / (pairs * variance))) if pairs and variance else 0.0
    null = SumNull(mean, math.sqrt(variance), correlation, -math.inf, len(sums))
    if not variance:
        return null
    standardized = null.standardize(np.concatenate([part.sums for part in parts]), sizes)
    cut = float(np.quantile(standardized, QUANTILE))
    return SumNull(mean, null.deviation, correlation, cut, len(sums))


def judge_groups(scores: Ragged, group: Ragged, null: SumNull) -> JudgedGroups:
    """Standardize the sum of each group and compare it with the null's cut; columns as of ``fit_null``."""
    part = _sums(scores, group)
    standardized = np.full(len(scores.values), np.nan)
    of_group = null.standardize(part.sums, part.sizes) if null.is_known else np.full(len(part.sums), np.nan)
    standardized[part.indices] = of_group[part.group_of_value]
    is_below = np.zeros(len(standardized), dtype=bool)
    is_below[part.indices] = (of_group < null.cut)[part.group_of_value]
    return JudgedGroups(
        scores.with_values(standardized),
        scores.with_values(is_below),
        len(part.sums),
        int(np.count_nonzero(of_group < null.cut)),
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """``indices``: of the V tokens with a score and a group; ``values``: their scores; ``group_of_value``: numbers from
    0 without a gap. ``sums``, ``sizes``: (G,)."""

    indices: np.ndarray
    values: np.ndarray
    group_of_value: np.ndarray
    sums: np.ndarray
    sizes: np.ndarray

    def squares_about(self, mean: float) -> np.ndarray:
        """Sum of the squared deviations of each group's scores from ``mean``, (G,)."""
        return np.bincount(self.group_of_value, weights=(self.values - mean) ** 2, minlength=len(self.sums))


def _sums(scores: Ragged, group: Ragged) -> _Sums:
    scores.check_aligned(group)
    indices = np.flatnonzero(np.isfinite(scores.values) & (group.values >= 0))
    values = scores.values[indices].astype(np.float64)
    _, group_of_value = np.unique(group.values[indices], return_inverse=True)
    sizes = np.bincount(group_of_value)
    return _Sums(indices, values, group_of_value, np.bincount(group_of_value, weights=values), sizes)
