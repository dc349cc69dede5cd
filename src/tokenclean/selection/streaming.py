"""Eq. 4 over scores that need not fit in memory: the exact global cut over shards, and the kept mask of each shard.

A shard holds the float32 scores of the response tokens of some rows in (row, position) order; shards come in pool
order. Shards of uint64 hold keys instead, for scores that float32 cannot hold (``order_keys``, ``RandomRanks``);
everything said about scores is true of them. The result is that of ``select_tokens`` at the global level: exactly
``kept_count(total, proportion)`` tokens are kept, everything above the threshold and then the first equal scores, where
-0.0 equals +0.0.

The cut is found in one of two ways. A bracket around the wanted rank is drawn from a sample (Floyd and Rivest 1975);
one pass counts the scores above it and gathers those inside. Where the bracket misses the rank or holds more scores
than memory, histograms of 16 bits each (a radix select) find the cut of any scores, in more passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.errors import NonFiniteError
from tokenclean.selection.ranking import kept_count
from tokenclean.selection.score_shards import Shard
from tokenclean.selection.sortable_keys import order_keys, radix_select, score_of_key

CHUNK_SCORES = 1 << 17
"""Scores processed together: enough to hide Python's overhead, few enough to stay in the processor's cache."""

SAMPLED_FROM_SCORES = 1 << 16
"""Up to this many scores, all are gathered and none is sampled."""

LARGEST_SAMPLE = 1 << 20

# Standard deviations from the sampled rank to each end of the bracket: about one bracket in a million misses.
_MARGIN = 5.0


@dataclass(frozen=True)
class Cut:
    """Where Eq. 4 cuts: keep each score above ``threshold`` and the first ``ties`` that equal it, in pool order."""

    threshold: float
    """The lowest kept score (nats), exactly a float32, or the lowest kept key (int); inf when nothing is kept."""
    ties: int
    """How many of the scores equal to ``threshold`` are kept."""
    total: int
    """Number of scores (response tokens)."""
    kept: int
    """Number of kept scores, ``kept_count(total, proportion)``."""


def find_cut(shards: Iterable[Shard], proportion: float, *, seed: int = 0, memory_bytes: int = 48 * 1024**2) -> Cut:
    """The cut that keeps the selected token ``proportion`` of all scores: one pass over the shards, three at worst
    (five for uint64 keys).

    ``seed`` draws the sample and ``memory_bytes`` is the room for scores inside the bracket; everything else takes less
    than 32 MiB. Both affect the time, never the cut. Raises ValueError unless all shards are native float32, or all
    uint64, and 0 <= ``proportion`` <= 1; NonFiniteError for NaN or inf.
    """
    arrays = _checked(shards)
    total = sum(map(len, arrays))
    kept = kept_count(total, proportion)
    if kept == 0:
        for _ in _finite_chunks(arrays):
            pass
        return Cut(threshold=math.inf, ties=0, total=total, kept=0)
    low, high = _bracket(arrays, total, kept, seed)
    room_scores = min(total, memory_bytes // arrays[0].dtype.itemsize)
    cut = cut_in_bracket(arrays, kept, low, high, room_scores)
    return cut if cut is not None else radix_cut(arrays, kept)


def cut_in_bracket(shards: Sequence[Shard], kept: int, low: float, high: float, room_scores: int) -> Cut | None:
    """The cut after ``kept`` >= 1 scores in one pass, if it lies in [``low``, ``high``]; None if not.

    Only the scores strictly inside are gathered, so ties at either end need no room; None too where more than
    ``room_scores`` lie inside. Raises NonFiniteError for NaN or inf.
    """
    inside = np.empty(room_scores, dtype=shards[0].dtype)
    total = above = at_high = at_low = gathered = 0
    for scores in _finite_chunks(shards):
        is_above_low, is_from_high = scores > low, scores >= high
        is_inside = is_above_low > is_from_high  # above low and not from high on
        count = np.count_nonzero(is_inside)
        if gathered + count > room_scores:
            return None
        inside[gathered : gathered + count] = scores[is_inside]
        gathered += count
        total += len(scores)
        chunk_above = np.count_nonzero(scores > high)
        above += chunk_above
        at_high += np.count_nonzero(is_from_high) - chunk_above
        at_low += np.count_nonzero(scores == low)

    rank = kept - above  # 1 is the first score from high downwards
    if rank < 1:
        return None
    if rank <= at_high:
        return _cut(high, rank, total, kept)
    rank -= at_high
    if rank <= gathered:
        inside = inside[:gathered]
        inside.partition(gathered - rank)
        threshold = inside[gathered - rank].item()
        return _cut(threshold, rank - np.count_nonzero(inside > threshold), total, kept)
    rank -= gathered
    if rank <= at_low and low < high:  # where they are one, its scores were counted as high's
        return _cut(low, rank, total, kept)
    return None


def radix_cut(shards: Sequence[Shard], kept: int) -> Cut:
    """The cut after ``kept`` scores, 1 <= ``kept`` <= total, in 8 MiB of memory for any scores.

    Each pass finds 16 more bits of the threshold's key with a histogram: two passes over float32 scores, four over
    uint64 keys. Raises NonFiniteError for NaN or inf.
    """
    dtype = shards[0].dtype
    key, ties, total = radix_select(lambda: map(order_keys, _finite_chunks(shards)), kept, bits=8 * dtype.itemsize)
    return _cut(score_of_key(key, dtype) if dtype == np.float32 else key, ties, total, kept)


def mask_of(scores: np.ndarray, cut: Cut, ties_taken: int = 0) -> tuple[np.ndarray, int]:
    """Which of the next ``scores`` in pool order the cut keeps: bool, same shape. Any number may be given at a time.

    ``ties_taken``: how many scores equal to the threshold earlier calls kept; returned with those of this call added.
    """
    is_kept = scores > cut.threshold
    room = cut.ties - ties_taken
    if room > 0:
        tied = np.flatnonzero(scores == cut.threshold)[:room]
        is_kept[tied] = True
        ties_taken += len(tied)
    return is_kept, ties_taken


def _checked(shards: Iterable[Shard]) -> list[Shard]:
    """The shards, arrays as plain ones (a slice of a memmap costs more); ValueError for another dtype."""
    checked: list[Shard] = []
    for number, shard in enumerate(shards):
        if shard.dtype not in (np.float32, np.uint64):
            raise ValueError(
                f"shard {number} must hold one float32 score (or uint64 key) a response token, found {shard.dtype}"
            )
        if checked and shard.dtype != checked[0].dtype:
            raise ValueError(
                f"shard {number} holds {shard.dtype} and shard 0 {checked[0].dtype}; scores cannot be ranked among keys"
            )
        checked.append(shard.view(np.ndarray) if isinstance(shard, np.ndarray) else shard)
    return checked


def _finite_chunks(shards: Sequence[Shard]) -> Iterator[np.ndarray]:
    """All scores in pool order, at most CHUNK_SCORES at a time; NonFiniteError at the first NaN or inf."""
    for number, shard in enumerate(shards):
        for start in range(0, len(shard), CHUNK_SCORES):
            scores = shard[start : start + CHUNK_SCORES]
            is_finite = np.isfinite(scores)
            if not is_finite.all():
                at = int(is_finite.argmin())
                raise NonFiniteError(
                    f"shard {number}: score {start + at} of {len(shard)} is {scores[at]}. Every response token "
                    "needs a loss under both models; usual causes: a row was not scored, a model overflowed. "
                    "Score that shard again"
                )
            yield scores


def _bracket(shards: Sequence[Shard], total: int, kept: int, seed: int) -> tuple[float, float]:
    """Scores (low, high) that most likely enclose the ``kept``-th highest; infinite where an end is not needed."""
    if total <= SAMPLED_FROM_SCORES:
        return -math.inf, math.inf
    # With n^(2/3) sampled scores the bracket holds a small multiple of n^(2/3): both ends of the work grow alike.
    sample = np.sort(_sample(shards, total, min(int(total ** (2 / 3)), LARGEST_SAMPLE), seed))
    share = kept / total
    middle = len(sample) * (1 - share)
    margin = _MARGIN * (math.sqrt(len(sample) * share * (1 - share)) + 1)
    at_low, at_high = math.floor(middle - margin), math.ceil(middle + margin)
    low = sample[at_low].item() if at_low >= 0 else -math.inf
    high = sample[at_high].item() if at_high < len(sample) else math.inf
    return low, high


def _sample(shards: Sequence[Shard], total: int, size: int, seed: int) -> np.ndarray:
    """``size`` scores drawn uniformly with replacement, in pool order."""
    indices = np.sort(np.random.default_rng(seed).integers(total, size=size))
    drawn, shard_start = [], 0
    for shard in shards:
        for start in range(0, len(shard), CHUNK_SCORES):
            scores_at = shard_start + start
            first, last = np.searchsorted(indices, (scores_at, scores_at + min(CHUNK_SCORES, len(shard) - start)))
            if first < last:
                drawn.append(shard[start : start + CHUNK_SCORES][indices[first:last] - scores_at])
        shard_start += len(shard)
    return np.concatenate(drawn)


def _cut(threshold: float, ties: int, total: int, kept: int) -> Cut:
    return Cut(threshold=threshold + 0, ties=ties, total=total, kept=kept)  # -0.0 + 0 is +0.0, and a key stays exact
