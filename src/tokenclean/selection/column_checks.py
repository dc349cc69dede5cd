"""Checks of per-token columns and arguments, shared by the rules of this package."""

from __future__ import annotations

import numpy as np

from tokenclean.ragged import Ragged


def response_indices(is_response: Ragged, *columns: Ragged) -> np.ndarray:
    """Indices of the response tokens in the flat values, in (row, position) order, int64, shape (R,).

    Raises ValueError for an ``is_response`` that is not bool and for ``columns`` that are not aligned with it.
    """
    if is_response.values.dtype != np.bool_:
        raise ValueError(f"is_response must be a bool column, got {is_response.values.dtype}")
    for column in columns:
        is_response.check_aligned(column)
    return np.flatnonzero(is_response.values)


def check_ids(input_ids: Ragged) -> None:
    """Raise ValueError unless ``input_ids`` holds integers."""
    if input_ids.values.dtype.kind not in "iu":
        raise ValueError(f"input_ids must be a column of integers, got {input_ids.values.dtype}")


def check_whole(name: str, number: int) -> None:
    """Raise ValueError unless ``number`` is a whole number of at least 1."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
