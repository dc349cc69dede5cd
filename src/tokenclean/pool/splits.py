"""Row indices of a pool's splits D̃_0 … D̃_T and of its held-out rows. Pure functions over row numbers and sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from math import floor

import numpy as np


def stratified_splits(sources: Sequence[str], splits: int, seed: int) -> list[np.ndarray]:
    """Splits that share out every source evenly.

    ``sources``: source name of each row, length N. Returns ``splits`` arrays of row indices (int64, ascending),
    together 0 … N - 1. Between any two splits the count of every source differs by at most one, and so does the
    size.
    """
    # Dealt like cards, one source after the other and each from where the last one ended: a source is a run of
    # consecutive cards, and so is the whole pool, hence both bounds.
    dealt = np.concatenate(list(_shuffled_rows(sources, seed).values()))
    return [np.sort(dealt[first::splits]) for first in range(splits)]


def heldout_rows(sources: Sequence[str], count: int, seed: int) -> np.ndarray:
    """``count`` rows to hold out, each source by its share of the pool (largest remainders, ties by source name).

    ``sources``: source name of each row, length N > count. Returns row indices (int64, shape (count,), ascending).
    """
    shuffled = _shuffled_rows(sources, seed).values()
    sizes = largest_remainders([Fraction(count * len(rows), len(sources)) for rows in shuffled], count)
    return np.sort(np.concatenate([rows[:size] for rows, size in zip(shuffled, sizes, strict=True)]))


def largest_remainders(quotas: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers near the quotas that add up to ``total``, the largest remainders rounded up, the first of equals.

    Fractions, so that equal remainders are equal.
    """
    sizes = [floor(quota) for quota in quotas]
    for n in sorted(range(len(quotas)), key=lambda n: (sizes[n] - quotas[n], n))[: total - sum(sizes)]:
        sizes[n] += 1
    return sizes


def _shuffled_rows(sources: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Rows of each source (by name, ascending) in an order that depends on the seed and that source alone."""
    rows_of: dict[str, list[int]] = {}
    for row, source in enumerate(sources):
        rows_of.setdefault(source, []).append(row)
    shuffled = {}
    for source in sorted(rows_of):
        digest = hashlib.sha256(f"{int(seed)}:{source}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "big"))
        shuffled[source] = generator.permutation(np.array(rows_of[source], dtype=np.int64))
    return shuffled
