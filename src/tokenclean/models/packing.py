"""Which conversations share one forward pass."""

from __future__ import annotations

import numpy as np


def plan_packs(lengths: np.ndarray, pack_tokens: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """Group rows into packs of at most ``pack_tokens`` tokens, longest rows first.

    ``lengths``: tokens of each row, int, shape (N,); rows of length 0 are left out. ``rows``: the rows to plan (all by
    default). Returns row numbers, one array per pack. A row longer than the budget gets a pack of its own. The plan
    depends on the lengths alone, so base and reference see identical packs. Raises ValueError for a budget below 1.
    """
    if pack_tokens < 1:
        raise ValueError(f"pack_tokens must be at least 1, got {pack_tokens}")
    lengths = np.asarray(lengths, dtype=np.int64)
    rows = np.arange(len(lengths)) if rows is None else np.asarray(rows, dtype=np.int64)
    rows = rows[lengths[rows] > 0]
    rows = rows[np.lexsort((rows, -lengths[rows]))]
    packs: list[np.ndarray] = []
    start = used = 0
    for position, length in enumerate(lengths[rows]):
        if position > start and used + length > pack_tokens:
            packs.append(rows[start:position])
            start, used = position, 0
        used += int(length)
    if len(rows):
        packs.append(rows[start:])
    return packs


def trimmed_lengths(is_target: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Length of each row up to its last target (int64, shape (N,)); 0 for a row without one.

    In a causal model tokens after the last target do not affect any loss.
    """
    positions = np.where(is_target, np.arange(len(is_target)), -1)
    lengths = np.zeros(len(offsets) - 1, dtype=np.int64)
    filled = np.flatnonzero(np.diff(offsets) > 0)
    if len(filled):
        last = np.maximum.reduceat(positions, offsets[:-1][filled])
        lengths[filled] = np.maximum(last - offsets[:-1][filled] + 1, 0)
    return lengths
