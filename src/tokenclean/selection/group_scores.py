"""Scores of groups of tokens, such as sentences: what is wrong is seldom one token, and one token's score is mostly
noise."""

from __future__ import annotations

import numpy as np

from tokenclean.ragged import Ragged


def group_scores(scores: Ragged, group: Ragged) -> Ragged:
    """Give each token the score of its group: Σs / √n over the group's n tokens that have a score.

    That is their sum in standard deviations, were their scores independent with one spread, so that groups of any
    length compare. ``scores``: float, NaN where there is none; ``group``: int64, the number of each token's group,
    below 0 for none; aligned. Returns the same dtype; a token without a group keeps its own score, one without a score
    has none. Raises ValueError for columns that are not aligned.
    """
    scores.check_aligned(group)
    values = scores.values.astype(np.float64)
    indices = np.flatnonzero(np.isfinite(values) & (group.values >= 0))
    _, number = np.unique(group.values[indices], return_inverse=True)
    sums = np.bincount(number, weights=values[indices])
    values[indices] = (sums / np.sqrt(np.bincount(number)))[number]
    return scores.with_values(values.astype(scores.values.dtype))
