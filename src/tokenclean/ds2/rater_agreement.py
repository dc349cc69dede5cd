"""How far raters agree, and how much their selections share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class PairAgreement:
    """Two raters: ``exact``: share of rows with the same label; ``rank_correlation``: Spearman's ρ, ties at their mean
    rank, NaN where one gives a single label."""

    first: str
    second: str
    exact: float
    rank_correlation: float


def pair_agreements(labels: Mapping[str, np.ndarray]) -> list[PairAgreement]:
    """Of every two raters' labels, int64 (N,) each, over the same rows."""
    return [
        PairAgreement(a, b, float(np.mean(labels[a] == labels[b])), rank_correlation(labels[a], labels[b]))
        for a, b in combinations(labels, 2)
    ]


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks, ties at their mean rank."""
    ranks = [_mean_ranks(np.asarray(values)) for values in (a_N, b_N)]
    centred = [rank - rank.mean() for rank in ranks]
    spread = float(np.sqrt(np.square(centred[0]).sum() * np.square(centred[1]).sum()))
    return float(np.dot(*centred)) / spread if spread > 0 else float("nan")


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse.ravel()]


def shared_selection(selections: Sequence[np.ndarray]) -> float:
    """Rows that all selections hold, as a share of the smallest; selections are arrays of row numbers."""
    common = set(selections[0].tolist())
    for selection in selections[1:]:
        common &= set(selection.tolist())
    smallest = min(len(selection) for selection in selections)
    return len(common) / smallest if smallest else float("nan")
