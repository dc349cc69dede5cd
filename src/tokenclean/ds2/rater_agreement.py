"""How far raters agree, and how much their selections share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
