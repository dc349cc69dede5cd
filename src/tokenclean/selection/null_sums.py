"""Which sentences have a lower sum of scores than chance gives, where chance is known from scores that say nothing.

A token's score is mostly noise, so it is judged together with its sentence. Sums over sentences of unequal length
compare after division by what their standard deviation is under the null; so do those of sure and of open tokens, where
it is said how widely each token's score spreads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.ragged import Ragged

QUANTILE = 0.01
"""Share of the null's sums below the cut."""

_CHANCE = 0.05
"""Groups below the cut are more than the null predicts where it gives so many with a lower probability than this."""


@dataclass(frozen=True)
class SumNull:
    """Sums of scores over groups of tokens under the null. A token of spread a has a score of mean ``mean`` · a and
    standard deviation ``deviation`` · a; ``correlation``: of two tokens of one group, in [0, 1]. ``cut``: the
    ``QUANTILE`` of the standardized sums, of which there are ``sums``.
    """

    mean: float
    deviation: float
    correlation: float
    cut: float
    sums: int

    def standardize(self, sums: np.ndarray, spreads: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """(Σs − mean · Σa) / (deviation · √((1 − correlation) · Σa² + correlation · (Σa)²)) of groups; (G,) each, the
        sums of their tokens' s, a and a². For n tokens of spread 1 without correlation the divisor is deviation · √n.
        """
        variances = (1 - self.correlation) * squares + self.correlation * spreads**2
        return (sums - self.mean * spreads) / (self.deviation * np.sqrt(variances))

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


def fit_null(scores: Sequence[Ragged], group: Ragged, spread: Ragged | None = None) -> SumNull:
    """The null's sums, from columns of ``scores`` (float, NaN where there is none) that say nothing.

    ``group``: int64, the number of each token's group, below 0 for none. ``spread``: float above 0, how widely the
    score of a token spreads in proportion to others; None for 1. All aligned. Moments: mean Σs / Σa, variance
    Σ(s − mean·a)² / Σa², and the correlation is the sum of the products of s − mean·a over all pairs of tokens of a
    group, over the variance and the sum of the products of a, at least 0.

    Raises ValueError for columns that are not aligned, or without any score in a group.
    """
    parts = [_sums(column, group, spread) for column in scores]
    total, spreads, squares = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("sums", "spreads", "squares")
    )
    if not len(total):
        raise ValueError("no token of a group has a score under the null")
    mean = float(total.sum() / spreads.sum())
    residual_squares = np.concatenate([part.residual_squares(mean) for part in parts])
    variance = float(residual_squares.sum() / squares.sum())
    products = float(((total - mean * spreads) ** 2 - residual_squares).sum())
    pairs = variance * float((spreads**2 - squares).sum())
    correlation = min(1.0, max(0.0, products / pairs)) if pairs > 0 else 0.0
    null = SumNull(mean, math.sqrt(variance), correlation, -math.inf, len(total))
    if not variance:
        return null
    return replace(null, cut=float(np.quantile(null.standardize(total, spreads, squares), QUANTILE)))


def judge_groups(scores: Ragged, group: Ragged, null: SumNull, spread: Ragged | None = None) -> JudgedGroups:
    """Standardize the sum of each group and compare it with the null's cut; columns as of ``fit_null``."""
    part = _sums(scores, group, spread)
    standardized, is_below = np.full(len(scores.values), np.nan), np.zeros(len(scores.values), dtype=bool)
    of_group = np.full(len(part.sums), np.nan)
    if null.is_known:
        of_group = null.standardize(part.sums, part.spreads, part.squares)
    standardized[part.indices] = of_group[part.group_of_value]
    is_below[part.indices] = (of_group < null.cut)[part.group_of_value]
    below = int(np.count_nonzero(of_group < null.cut))
    return JudgedGroups(scores.with_values(standardized), scores.with_values(is_below), len(part.sums), below)


@dataclass(frozen=True, eq=False)
class _Sums:
    """``indices``: of the V tokens with a score and a group; ``values``, ``spread``: of these, float64;
    ``group_of_value``: numbers from 0 without a gap. ``sums``, ``spreads``, ``squares``: Σs, Σa, Σa² of each group,
    (G,)."""

    indices: np.ndarray
    values: np.ndarray
    spread: np.ndarray
    group_of_value: np.ndarray

    @property
    def sums(self) -> np.ndarray:
        return np.bincount(self.group_of_value, weights=self.values)

    @property
    def spreads(self) -> np.ndarray:
        return np.bincount(self.group_of_value, weights=self.spread)

    @property
    def squares(self) -> np.ndarray:
        return np.bincount(self.group_of_value, weights=self.spread**2)

    def residual_squares(self, mean: float) -> np.ndarray:
        """Σ(s − mean·a)² of each group, (G,)."""
        return np.bincount(self.group_of_value, weights=(self.values - mean * self.spread) ** 2)


def _sums(scores: Ragged, group: Ragged, spread: Ragged | None) -> _Sums:
    for column in (group, *([] if spread is None else [spread])):
        scores.check_aligned(column)
    indices = np.flatnonzero(np.isfinite(scores.values) & (group.values >= 0))
    _, group_of_value = np.unique(group.values[indices], return_inverse=True)
    widths = np.ones(len(indices)) if spread is None else spread.values[indices].astype(np.float64)
    return _Sums(indices, scores.values[indices].astype(np.float64), widths, group_of_value)
