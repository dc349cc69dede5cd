"""Rows that nearly repeat an earlier row: exact, without signatures or chance.

Two sets with a Jaccard index of t or more share at least ⌈t·|A|⌉ elements, so of the elements in any one order the
first |A| − ⌈t·|A|⌉ + 1 of A and of B have one in common (prefix filtering: Bayardo, Ma and Srikant 2007). In the order
from rare to common shingles few rows meet there, and those that do are compared by their true index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from tokenclean.checks.findings import EXAMPLES, Example, Found, answers_of, excerpt_of, place_of, short_place
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.duplicates import jaccard_index
from tokenclean.pool.word_ngrams import WordHashes, ngram_hashes, pieces_of, texts_of
from tokenclean.ragged import Ragged, offsets_of

SHINGLE_PIECES = 3  # short, so that one other word does not make a short row another
THRESHOLD = 0.7
ANSWER_OVERLAP = 0.5  # Jaccard index of the words of both answers
_BLOCK_ROWS = 4096
_SHINGLES = 40_000_000  # of all rows compared: 320 MB
_NUMBER = 0xFFFFFFFF
_STOCK_ROWS, _STOCK_SHARE, _LEAST_OWN = 20, 0.01, 5


class NearDuplicates:
    """Near-duplicates among the rows, exact duplicates aside. The memory is bounded: rows after the first
    ``shingles_kept`` shingles are not compared."""

    def __init__(self, shingles_kept: int = _SHINGLES) -> None:
        self._keys: set[int] = set()
        self._block: list[Conversation] = []
        self._hashes = WordHashes()
        self._shingles: list[np.ndarray] = []  # of each block, row after row
        self._lengths: list[np.ndarray] = []
        self._answers: list[str] = []
        self._rows: list[tuple[str, str, str]] = []  # id, place, excerpt
        self._left, self._missed = shingles_kept, 0

    def add(self, conversation: Conversation) -> None:
        if self._left <= 0:
            self._missed += 1
            return
        key = hash(" ".join(" ".join(turn.content for turn in conversation.turns).casefold().split()))
        if conversation.tokens is not None or key in self._keys:
            return
        self._keys.add(key)
        self._block.append(conversation)
        if len(self._block) == _BLOCK_ROWS:
            self._take_block()

    def found(self) -> Found:
        self._take_block()
        sets, counts = by_rarity(self._all_shingles())
        sets = without_stock_phrases(sets, counts)
        pairs = similar_earlier_rows(sets, counts, THRESHOLD, self._are_answers_alike)
        examples = []
        for row, of in list(pairs.items())[:EXAMPLES]:
            (id, place, excerpt), similarity = self._rows[row], jaccard_index(sets[row], sets[of])
            examples.append(Example(id, place, f"{similarity:.2f} like {short_place(self._rows[of][1])}", excerpt))
        note = f"{self._missed:,} rows after the first {len(self._rows):,} not compared" if self._missed else ""
        return Found(len(pairs), tuple(examples), note=note)

    def _all_shingles(self) -> Ragged:
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        return Ragged(np.concatenate([np.empty(0, np.uint64), *self._shingles]), offsets_of(lengths))

    def _are_answers_alike(self, row: int, of: int) -> bool:
        """Another question about the same text is no near-duplicate."""
        first, second = (frozenset(self._answers[n].lower().split()) for n in (row, of))
        return len(first & second) >= ANSWER_OVERLAP * len(first | second)

    def _take_block(self) -> None:
        pieces = [[piece for text in texts_of(row) for piece in pieces_of(text)] for row in self._block]
        shingles = ngram_hashes(self._hashes.of_texts(pieces), SHINGLE_PIECES)
        self._shingles.append(shingles.values)
        self._lengths.append(shingles.lengths)
        self._left -= len(shingles.values)
        for conversation in self._block:
            text = "\n".join(turn.content for turn in conversation.turns)
            self._rows.append((conversation.id, place_of(conversation), excerpt_of(text, 0)))
            self._answers.append(" ".join(turn.content for _, turn in answers_of(conversation)))
        self._block.clear()


def by_rarity(rows: Ragged) -> tuple[Ragged, np.ndarray]:
    """The rows as sets, with numbers in place of their values, rare ones first and ascending in each row; and in how
    many rows each number is, int64. ``rows``: any values."""
    _, number_T = np.unique(rows.values, return_inverse=True)
    keys_T = np.sort((rows.row_of_value() << 32) + number_T)  # sorted together, row by row
    keys_T = keys_T[np.diff(keys_T, prepend=-1) != 0]
    row_T, number_T = keys_T >> 32, keys_T & _NUMBER
    counts = np.bincount(number_T)
    order = np.argsort(counts, kind="stable")
    rank = np.empty(len(counts), dtype=np.int64)
    rank[order] = np.arange(len(counts))
    keys_T = np.sort((row_T << 32) + rank[number_T])
    lengths = np.bincount(row_T, minlength=len(rows))
    return Ragged(keys_T & _NUMBER, offsets_of(lengths)), counts[order]


def without_stock_phrases(sets: Ragged, counts: np.ndarray) -> Ragged:
    """The numbered sets without what more than twenty rows and a hundredth of all have; of a row that has less than
    five others, nothing is left."""
    is_own_T = counts[sets.values] <= max(_STOCK_ROWS, _STOCK_SHARE * len(sets))
    row_T = sets.row_of_value()
    own = np.bincount(row_T[is_own_T], minlength=len(sets))
    return _filtered(sets, is_own_T & ((own >= _LEAST_OWN) | (own == sets.lengths))[row_T])


def similar_earlier_rows(
    sets: Ragged,
    counts: np.ndarray,
    threshold: float,
    is_similar: Callable[[int, int], bool] = lambda row, of: True,
) -> dict[int, int]:
    """Row -> the first earlier row that stays and has a Jaccard index of ``threshold`` or more with it.

    ``sets``, ``counts``: as ``by_rarity`` gives them. A row that resembles an earlier one does not stay, so that no
    chain of rows is one group. ``is_similar``: what a pair must fulfil besides.
    """
    index: defaultdict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    lengths = sets.lengths.tolist()
    for row, prefix in enumerate(_prefixes(sets, counts, threshold)):
        shared = prefix.tolist()
        for candidate in sorted({candidate for number in shared for candidate in index.get(number, ())}):
            small, large = sorted((lengths[row], lengths[candidate]))
            is_near = small >= threshold * large and jaccard_index(sets[row], sets[candidate]) >= threshold
            if is_near and is_similar(row, candidate):
                found[row] = candidate
                break
        else:
            for number in shared:
                index[number].append(row)
    return found


def _prefixes(sets: Ragged, counts: np.ndarray, threshold: float) -> Ragged:
    """Of each row the rarest elements, of which it shares one with any similar row; without those of one row alone."""
    kept = sets.lengths - np.ceil(threshold * sets.lengths - 1e-9).astype(np.int64) + 1
    place_T = np.arange(len(sets.values)) - np.repeat(sets.offsets[:-1], sets.lengths)
    return _filtered(sets, (place_T < np.repeat(kept, sets.lengths)) & (counts[sets.values] > 1))


def _filtered(sets: Ragged, is_kept_T: np.ndarray) -> Ragged:
    lengths = np.bincount(sets.row_of_value()[is_kept_T], minlength=len(sets))
    return Ragged(sets.values[is_kept_T], offsets_of(lengths))
