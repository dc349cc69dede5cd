"""The whole pool behind the conversations that a viewer shows: its contents, its ranking, and every cut of it.

A page cuts again by rank: at proportion p it keeps the ranks below ``kept_count(n, p)``, which are the tokens that
``select_tokens`` keeps at level ``global``.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged, offsets_of
from tokenclean.selection import kept_count, order_keys
from tokenclean.token_table import TokenTable

STEPS = 1_000
"""Cuts are counted at the proportions 0/1000 … 1000/1000."""
NOT_RANKED = 0xFFFFFFFF
"""The rank of a response token without a finite score."""


@dataclass(frozen=True)
class RankedPool:
    """A whole table without its tokens: N rows, R response tokens in the order of (row, position).

    ``ids``/``sources``: one a row. ``lengths``: int64 (N,), tokens of each row. ``responses``: int64 (N + 1,), offsets
    of the rows among the response tokens. ``scores_R``: as stored, None for a table without scores. ``kept_R``: bool
    (ŷ), None for a table without labels. ``digests``: a hash of each row's token ids.
    """

    ids: tuple[str, ...]
    sources: tuple[str, ...]
    lengths: np.ndarray
    responses: np.ndarray
    scores_R: np.ndarray | None
    kept_R: np.ndarray | None
    digests: tuple[bytes, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def survey_table(parts: Iterable[TokenTable], name: str = "this table") -> RankedPool:
    """Read a table once, part after part. Raises TableError, with its name, for scores that are not real numbers."""
    ids: list[str] = []
    sources: list[str] = []
    digests: list[bytes] = []
    pieces: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    metadata: Mapping[str, Any] = {}
    for part in parts:
        is_response = part["is_response"]
        ids += part.ids
        sources += part.sources
        digests += (hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in part["input_ids"])
        pieces["lengths"].append(is_response.lengths)
        pieces["responses"].append(is_response.row_sums().astype(np.int64))
        for column in ("score", "is_kept"):
            if column in part.columns:
                pieces[column].append(part[column].values[is_response.values])
        metadata = part.metadata
    whole = {name: np.concatenate(values) for name, values in pieces.items()}
    scores_R = whole.get("score")
    if scores_R is not None and scores_R.dtype.kind not in "iuf":
        raise TableError(f"{name}: column 'score': scores must be real numbers, found {scores_R.dtype}")
    responses = offsets_of(whole["responses"])
    kept_R = whole.get("is_kept")
    return RankedPool(
        tuple(ids), tuple(sources), whole["lengths"], responses, scores_R, kept_R, tuple(digests), metadata
    )


def pool_ranks(scores_R: np.ndarray) -> np.ndarray:
    """Place of each response token among those with a finite score, best first, uint32, shape (R,).

    ``scores_R``: real numbers in the order of (row, position), which breaks ties. A token without a finite score has
    ``NOT_RANKED``.
    """
    ranks_R = np.full(len(scores_R), NOT_RANKED, dtype=np.uint32)
    ranked = np.flatnonzero(np.isfinite(scores_R))
    best_first = np.argsort(~order_keys(scores_R[ranked]), kind="stable")
    ranks_R[ranked[best_first]] = np.arange(len(ranked), dtype=np.uint32)
    return ranks_R


def count_cuts(
    scores_R: np.ndarray, ranks_R: np.ndarray, source_R: np.ndarray, source_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that every cut keeps, and its threshold, at the proportions 0/1000 … 1000/1000.

    ``source_R``: int (R,), the number of each response token's source, of S. Tokens: int64, shape (1001, S), ranked
    ones by source. Thresholds: float32 (1001,), the lowest kept score (τ of Eq. 4), NaN where nothing is kept.
    """
    is_ranked = ranks_R != NOT_RANKED
    ranked = ranks_R[is_ranked].astype(np.int64)
    kept_counts = np.array([kept_count(len(ranked), step / STEPS) for step in range(STEPS + 1)])
    # A rank is kept from the first step whose count exceeds it.
    first_step = np.searchsorted(kept_counts, ranked, side="right")
    cells = first_step * source_count + source_R[is_ranked]
    newly_kept = np.bincount(cells, minlength=(STEPS + 1) * source_count).reshape(STEPS + 1, source_count)
    best_first = np.empty(len(ranked), dtype=np.float32)
    best_first[ranked] = scores_R[is_ranked]
    thresholds = np.full(STEPS + 1, np.nan, dtype=np.float32)
    keeps_any = kept_counts > 0
    thresholds[keeps_any] = best_first[kept_counts[keeps_any] - 1]
    return np.cumsum(newly_kept, axis=0), thresholds


@dataclass(frozen=True)
class Sample:
    """The most conversations and tokens that a view holds, and the seed by which they are drawn from a larger pool."""

    conversations: int = 2_000
    tokens: int = 400_000
    seed: int = 0


def choose_rows(sources: Sequence[str], lengths: np.ndarray, sample: Sample) -> np.ndarray:
    """Rows to show, int64, rising: all where they fit, else a seeded sample with each source in proportion.

    ``lengths``: int (N,), tokens of each row. Every source gives one row before any gives a second. A row longer than
    ``sample.tokens`` by itself is never taken. The sample ends before the first row that no longer fits, so that short
    rows are not preferred to long ones.
    """
    rows = np.flatnonzero(lengths <= sample.tokens)
    if len(rows) <= sample.conversations and int(lengths[rows].sum()) <= sample.tokens:
        return rows
    shuffled = np.random.default_rng(sample.seed).permutation(rows)
    names: list[str] = [str(sources[row]) for row in shuffled.tolist()]
    sizes = Counter(names)
    # Row i of m in a source is placed at i / m of the way, so any beginning has the sources in proportion.
    place = np.array([number / sizes[name] for number, name in zip(earlier(names), names, strict=True)])
    ordered = shuffled[np.argsort(place, kind="stable")]
    fitting = int(np.count_nonzero(np.cumsum(lengths[ordered]) <= sample.tokens))
    return np.sort(ordered[: min(sample.conversations, fitting)])


def earlier(items: Iterable[Hashable]) -> Iterator[int]:
    """For each item, how many equal ones come before it."""
    seen: Counter[Hashable] = Counter()
    for item in items:
        yield seen[item]
        seen[item] += 1


def take_rows(parts: Iterable[TokenTable], rows: np.ndarray) -> TokenTable:
    """The given rows, numbered over all parts, in the given order, as one table in memory without metadata."""
    order = np.argsort(rows, kind="stable")
    rising = rows[order]
    ids: list[str] = []
    sources: list[str] = []
    columns: defaultdict[str, list[Ragged]] = defaultdict(list)
    first = 0
    for part in parts:
        here = rising[np.searchsorted(rising, first) : np.searchsorted(rising, first + len(part))] - first
        first += len(part)
        ids += (part.ids[row] for row in here.tolist())
        sources += (part.sources[row] for row in here.tolist())
        for name, column in part.columns.items():
            columns[name].append(column.take(here))
    back = np.argsort(order, kind="stable")
    return TokenTable(
        tuple(ids[row] for row in back.tolist()),
        tuple(sources[row] for row in back.tolist()),
        {name: _joined(column).take(back) for name, column in columns.items()},
    )


def _joined(parts: Sequence[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), offsets_of(lengths))
