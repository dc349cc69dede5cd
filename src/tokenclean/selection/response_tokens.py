"""The response tokens of per-token columns: found, checked, and given values."""

from __future__ import annotations

import numpy as np

from tokenclean.errors import NonFiniteError
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


def on_response(is_response: Ragged, values_R: np.ndarray) -> Ragged:
    """A column with these values, shape (R,), on the response tokens and 0 or False elsewhere."""
    values = np.zeros(len(is_response.values), dtype=values_R.dtype)
    values[is_response.values] = values_R
    return is_response.with_values(values)


def check_ids(input_ids: Ragged) -> None:
    """Raise ValueError unless ``input_ids`` holds integers."""
    if input_ids.values.dtype.kind not in "iu":
        raise ValueError(f"input_ids must be a column of integers, got {input_ids.values.dtype}")


def finite_values(name: str, column: Ragged, indices: np.ndarray) -> np.ndarray:
    """The column's values at the response ``indices``; NonFiniteError names the first that is not finite."""
    values = column.values[indices]
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row, position = column.locate(int(indices[bad[0]]))
        raise not_finite(name, f"row {row}", position, float(values[bad[0]]), len(bad), len(indices))
    return values


def not_finite(
    name: str, row: str, position: int, found: float, faults: int, total: int, *, file: str = ""
) -> NonFiniteError:
    """The error for response tokens whose score or loss is NaN or inf: the first, and how many of ``total``."""
    return NonFiniteError(
        f"{file}the {name} of {row}, position {position} is {found}; {faults} of {total} response tokens have no "
        f"finite {name}. Every response token needs a loss under every model used; usual causes: is_response True at "
        "position 0, a row was not scored, a model overflowed"
    )
