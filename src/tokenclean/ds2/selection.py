"""The selection of the best-rated, then the rarest conversations, and how far raters and selections agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenclean.ds2.neighbours import Neighbours


def long_tail_scores(neighbours: Neighbours, count: int = 10) -> np.ndarray:
    """2 / (1 + e^−x) − 1, float64 (N,), where x is the mean cosine distance to the ``count`` nearest others: 0 for a
    point among its copies, larger the rarer it is."""
    distances = neighbours.first(count).distances.astype(np.float64)
    return np.tanh(distances.mean(axis=1) / 2)


def select_best(labels_N: np.ndarray, long_tail_N: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` points, int64, class by class from the highest label down.

    Whole classes are taken while they fit, then the highest long-tail scores of the next; within a class the rarest
    come first, ties by index. All points are taken where there are fewer than ``count``.
    """
    order = np.lexsort((np.arange(len(labels_N)), -np.asarray(long_tail_N), -np.asarray(labels_N)))
    return order[:count].astype(np.int64)


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks, ties at their mean rank; NaN where all of ``a`` or ``b`` are
    equal."""
    from scipy.stats import rankdata

    a, b = (ranks - ranks.mean() for ranks in (rankdata(a_N), rankdata(b_N)))
    spread = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float(np.dot(a, b)) / spread if spread > 0 else float("nan")


def shared_selection(selections: Sequence[np.ndarray]) -> float:
    """Rows that all selections hold, as a share of the smallest; selections are arrays of row numbers."""
    common = set.intersection(*(set(selection.tolist()) for selection in selections))
    smallest = min(len(selection) for selection in selections)
    return len(common) / smallest if smallest else float("nan")
