"""Eq. 4 over scores that need not fit in memory: the exact global cut over shards, and the kept mask of each shard.

A shard is a 1-D float32 array, as a rule a memory-mapped .npy file (``np.load(path, mmap_mode="r")``), with the scores
of the response tokens of some rows in (row, position) order; shards come in pool order. Shards of uint64 hold keys
instead, for scores that float32 cannot hold (``order_keys``, ``RandomRanks``); everything said of scores goes for them.
The result is that of ``select_tokens`` at the global level: exactly ``kept_count(total, proportion)`` tokens are kept,
everything above the threshold and then the first equal scores, where -0.0 equals +0.0.

Two ways lead to the same cut. A bracket around the wanted rank is drawn from a sample (Floyd and Rivest 1975); one pass
counts the scores above it and gathers those inside. Where the rank is missed or the inside has no room, histograms of
16 bits each (a radix select) find the cut whatever the scores are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenclean.errors import NonFiniteError
from tokenclean.selection.ranking import kept_count
from tokenclean.selection.score_shards import Shard
from tokenclean.selection.sortable_keys import order_keys, radix_select, score_of_key
from tokenclean.store import atomic_path

CHUNK_SCORES = 1 << 17
"""Scores looked at together: large enough to hide Python, small enough to stay in the processor's cache."""

SAMPLED_FROM_SCORES = 1 << 16
"""Up to so many scores are gathered whole."""

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

    ``seed`` draws the sample and ``memory_bytes`` is the room for scores inside the bracket; all the rest takes less
    than 32 MiB. Both bear on the time, never on the cut. Raises ValueError unless all shards are 1-D native float32,
    or all uint64, and 0 <= ``proportion`` <= 1; NonFiniteError for NaN or inf.
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
        is_inside = is_above_low > is_from_high  # the one and not the other
        count = _count(is_inside)
        if gathered + count > room_scores:
            return None
        inside[gathered : gathered + count] = scores[is_inside]
        gathered += count
        total += len(scores)
        chunk_above = _count(scores > high)
        above += chunk_above
        at_high += _count(is_from_high) - chunk_above
        at_low += _count(scores == low)

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
        return _cut(threshold, rank - _count(inside > threshold), total, kept)
    rank -= gathered
    if rank <= at_low and low < high:  # where they are one, its scores were counted as high's
        return _cut(low, rank, total, kept)
    return None


def radix_cut(shards: Sequence[Shard], kept: int) -> Cut:
    """The cut after ``kept`` scores, 1 <= ``kept`` <= total, in 8 MiB whatever the scores are.

    Each pass finds 16 more bits of the threshold's key with a histogram: two passes over float32 scores, four over
    uint64 keys. Raises NonFiniteError for NaN or inf.
    """
    dtype = shards[0].dtype
    key, ties, total = radix_select(lambda: map(order_keys, _finite_chunks(shards)), kept, bits=8 * dtype.itemsize)
    return _cut(score_of_key(key, dtype) if dtype == np.float32 else key, ties, total, kept)


def mask_of(scores: np.ndarray, cut: Cut, ties_taken: int = 0) -> tuple[np.ndarray, int]:
    """Which of the next ``scores`` (as those cut, any number, in pool order) the cut keeps: bool, same shape.

    ``ties_taken`` is how many equal scores the calls before took; it is returned brought up to date.
    """
    is_kept = scores > cut.threshold
    room = cut.ties - ties_taken
    if room > 0:
        tied = np.flatnonzero(scores == cut.threshold)[:room]
        is_kept[tied] = True
        ties_taken += len(tied)
    return is_kept, ties_taken


def write_kept(shards: Iterable[Shard], cut: Cut, paths: Sequence[Path | str]) -> None:
    """Write the kept mask of each shard to the path beside it: a bool .npy of the shard's length.

    The files take their names only when all are whole and exactly ``cut.kept`` scores are kept. Raises ValueError
    where shards, paths and ``cut`` do not belong together, RunFolderError where a file cannot be written.
    """
    arrays = _checked(shards)
    distinct = len({Path(path) for path in paths})
    if not len(arrays) == len(paths) == distinct:
        raise ValueError(
            f"{len(arrays)} shards need a path each, all different; got {len(paths)} paths, {distinct} different"
        )
    total = sum(map(len, arrays))
    if total != cut.total:
        raise ValueError(f"the cut was found over {cut.total} scores but these shards hold {total}; find it again")
    ties_taken = kept = 0
    with ExitStack() as files:
        for scores, path in zip(arrays, paths, strict=True):
            temporary = files.enter_context(atomic_path(path))
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|b1", "fortran_order": False, "shape": scores.shape}
                )
                for start in range(0, len(scores), CHUNK_SCORES):
                    is_kept, ties_taken = mask_of(scores[start : start + CHUNK_SCORES], cut, ties_taken)
                    kept += _count(is_kept)
                    file.write(is_kept.data)
        if kept != cut.kept:
            raise ValueError(
                f"the cut keeps {kept} of these scores, not {cut.kept}: it was found over others; find it again"
            )


def _checked(shards: Iterable[Shard]) -> list[Shard]:
    """The shards, arrays as plain ones (a slice of a memmap costs more); ValueError for another dtype or shape."""
    checked: list[Shard] = []
    for number, shard in enumerate(shards):
        if shard.dtype not in (np.float32, np.uint64) or len(shard.shape) != 1:
            raise ValueError(
                f"{_name(number, shard)} must hold one float32 score (or uint64 key) a response token, "
                f"found dtype {shard.dtype} and shape {shard.shape}; save it with scores.astype(np.float32).ravel()"
            )
        if checked and shard.dtype != checked[0].dtype:
            raise ValueError(
                f"{_name(number, shard)} holds {shard.dtype} and shard 0 {checked[0].dtype}; scores cannot be ranked "
                "among keys"
            )
        checked.append(shard.view(np.ndarray) if isinstance(shard, np.ndarray) else shard)
    return checked


def _name(number: int, shard: Shard) -> str:
    memmap = shard.base if isinstance(shard, np.ndarray) and not isinstance(shard, np.memmap) else shard
    file = f" ({memmap.filename})" if isinstance(memmap, np.memmap) and memmap.filename else ""
    return f"shard {number}{file}"


def _finite_chunks(shards: Sequence[Shard]) -> Iterator[np.ndarray]:
    """All scores in pool order, at most CHUNK_SCORES at a time; NonFiniteError at the first NaN or inf."""
    for number, shard in enumerate(shards):
        for start in range(0, len(shard), CHUNK_SCORES):
            scores = shard[start : start + CHUNK_SCORES]
            is_finite = np.isfinite(scores) if scores.dtype.kind == "f" else None
            if is_finite is not None and not is_finite.all():
                at = int(is_finite.argmin())
                raise NonFiniteError(
                    f"{_name(number, shard)}: score {start + at} of {len(shard)} is {scores[at]}. Every response token "
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
    places = np.sort(np.random.default_rng(seed).integers(total, size=size))
    drawn, shard_start = [], 0
    for shard in shards:
        for start in range(0, len(shard), CHUNK_SCORES):
            scores_at = shard_start + start
            first, last = np.searchsorted(places, (scores_at, scores_at + min(CHUNK_SCORES, len(shard) - start)))
            if first < last:
                drawn.append(shard[start : start + CHUNK_SCORES][places[first:last] - scores_at])
        shard_start += len(shard)
    return np.concatenate(drawn)


def _count(is_true: np.ndarray) -> int:
    return int(np.count_nonzero(is_true))


def _cut(threshold: float, ties: int, total: int, kept: int) -> Cut:
    return Cut(threshold=threshold + 0, ties=ties, total=total, kept=kept)  # -0.0 + 0 is +0.0, and a key stays exact
