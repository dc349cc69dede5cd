"""Row indices of a pool's splits D̃_0 … D̃_T and of its held-out rows. Pure functions over row numbers and sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def contiguous_splits(count_rows: int, splits: int) -> list[np.ndarray]:
    """The paper's splits: contiguous parts in file order, near-equal, the first ones taking the remainder.

    Returns ``splits`` arrays of row indices (int64), together 0 … count_rows - 1. Raises ValueError for fewer than
    one split or more splits than rows.
    """
    _check_splits(count_rows, splits)
    return np.array_split(np.arange(count_rows, dtype=np.int64), splits)


def stratified_splits(sources: Sequence[str], splits: int, seed: int) -> list[np.ndarray]:
    """Splits that share out every source evenly.

    ``sources``: source name of each row, length N. Returns ``splits`` arrays of row indices (int64, ascending),
    together 0 … N - 1. Between any two splits the count of every source differs by at most one, and so does the
    size. Raises ValueError for fewer than one split or more splits than rows.
    """
    _check_splits(len(sources), splits)
    # Dealt like cards, one source after the other and each from where the last one ended: a source is a run of
    # consecutive cards, and so is the whole pool, hence both bounds.
    dealt = np.concatenate(list(_shuffled_rows(sources, seed).values()))
    return [np.sort(dealt[first::splits]) for first in range(splits)]


def heldout_rows(sources: Sequence[str], count: int, seed: int) -> np.ndarray:
    """``count`` rows to hold out, each source by its share of the pool (largest remainders, ties by source name).

    ``sources``: source name of each row, length N. Returns row indices (int64, shape (count,), ascending). Raises
    ValueError unless 0 <= count < N.
    """
    total = len(sources)
    if not 0 <= count < total:
        raise ValueError(f"cannot hold out {count} of {total} rows; expected a number from 0 to below {total}")
    shuffled = _shuffled_rows(sources, seed)
    # In integers, so that equal remainders are equal.
    quotas = {source: divmod(count * len(rows), total) for source, rows in shuffled.items()}
    missing = count - sum(whole for whole, _ in quotas.values())
    rounded_up = sorted(quotas, key=lambda source: (-quotas[source][1], source))[:missing]
    chosen = [rows[: quotas[source][0] + (source in rounded_up)] for source, rows in shuffled.items()]
    return np.sort(np.concatenate(chosen))


def _shuffled_rows(sources: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Rows of each source (by name, ascending) in an order that depends on the seed and that source alone."""
    rows_of: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        rows_of.setdefault(source, []).append(row)
    return {
        source: _generator(seed, source).permutation(np.array(rows_of[source], dtype=np.int64))
        for source in sorted(rows_of)
    }


def _generator(seed: int, source: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{int(seed)}:{source}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _check_splits(count_rows: int, splits: int) -> None:
    if splits < 1:
        raise ValueError(f"expected at least 1 split, got {splits}")
    if splits > count_rows:
        raise ValueError(f"cannot make {splits} splits of {count_rows} rows; expected at most one split a row")
