"""Ratings of 1 to 10 as the classes that DS² works with."""

from __future__ import annotations

import numpy as np

CLASSES = 6
"""Classes 0 … 5: ratings up to 4 are one class, and so are those from 9 on."""

_LOWEST, _HIGHEST = 4, 9


def classes_of(ratings_N: np.ndarray) -> np.ndarray:
    """clip(rating, 4, 9) − 4, int64 (N,), of overall ratings 1 to 10; NaN, an answer not readable, is class 0.

    Raises ValueError for a rating outside 1 … 10.
    """
    ratings = np.asarray(ratings_N, dtype=np.float64)
    is_read = ~np.isnan(ratings)
    outside = is_read & ((ratings < 1) | (ratings > 10))
    if outside.any():
        place = int(np.flatnonzero(outside)[0])
        raise ValueError(f"rating {ratings[place]:g} of row {place} is not between 1 and 10")
    return np.where(is_read, np.clip(np.nan_to_num(ratings, nan=_LOWEST), _LOWEST, _HIGHEST) - _LOWEST, 0).astype(
        np.int64
    )
