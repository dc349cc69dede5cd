"""Eq. 4 over scores that need not fit in memory: the exact global cut, and the kept mask of each part.

Scores are ranked by their keys, unsigned integers in the same order (``order_keys``); at level ``random`` by random
keys (``random_keys``). Keys come in pool order, a chunk at a time. The result is that of ``select_tokens`` at the
global level: exactly ``kept_count(total, proportion)`` tokens are kept, everything above the threshold and then the
first equal keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from tokenclean.selection.ranking import kept_count

CHUNK_KEYS = 1 << 17
"""Keys processed together: enough to hide Python's overhead, few enough to stay in the processor's cache."""

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS


@dataclass(frozen=True)
class Cut:
    """Where Eq. 4 cuts: keep each key above ``threshold`` and the first ``ties`` that equal it, in pool order."""

    threshold: int
    """The lowest kept key; the highest possible key when nothing is kept."""
    ties: int
    """How many of the keys equal to ``threshold`` are kept."""
    total: int
    """Number of keys (response tokens)."""
    kept: int
    """Number of kept keys, ``kept_count(total, proportion)``."""


def find_cut(passes: Callable[[], Iterable[np.ndarray]], proportion: float, *, bits: int) -> Cut:
    """The cut that keeps the selected token ``proportion`` of all keys, by a radix select in 3 MiB of memory.

    ``passes`` gives all keys (uint32 or uint64, that is 32 or 64 ``bits``) in chunks, the same at every call. Each call
    settles 16 bits of the threshold, from the top downwards, with a histogram of the keys that begin with the bits
    settled before. Raises ValueError unless 0 <= ``proportion`` <= 1.
    """
    threshold = ties = total = kept = 0
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        is_first = shift == bits - _DIGIT_BITS
        counts = np.zeros(_DIGITS, dtype=np.int64)
        for keys in passes():
            left = keys if is_first else keys[keys >> (shift + _DIGIT_BITS) == threshold]
            counts += np.bincount(((left >> shift) & (_DIGITS - 1)).astype(np.intp), minlength=_DIGITS)
        if is_first:
            total = int(counts.sum())
            kept = ties = kept_count(total, proportion)
            if not kept:
                return Cut((1 << bits) - 1, 0, total, 0)
        from_top = np.cumsum(counts[::-1])
        digit = _DIGITS - 1 - int(np.searchsorted(from_top, ties))
        ties -= int(from_top[_DIGITS - 1 - digit] - counts[digit])
        threshold = threshold << _DIGIT_BITS | digit
    return Cut(threshold, ties, total, kept)


def mask_of(keys: np.ndarray, cut: Cut, ties_taken: int = 0) -> tuple[np.ndarray, int]:
    """Which of the next ``keys`` in pool order the cut keeps: bool, same shape. Any number may be given at a time.

    ``ties_taken``: how many keys equal to the threshold earlier calls kept; returned with those of this call added.
    """
    is_kept = keys > cut.threshold
    room = cut.ties - ties_taken
    if room > 0:
        tied = np.flatnonzero(keys == cut.threshold)[:room]
        is_kept[tied] = True
        ties_taken += len(tied)
    return is_kept, ties_taken
