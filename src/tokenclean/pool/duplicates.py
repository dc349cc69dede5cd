"""Rows that repeat an earlier row, word for word or nearly.

Exact duplicates have the same content once case, Unicode's composed forms and spaces are folded. Near-duplicates share
most of their shingles (runs of five words or symbols): MinHash with locality-sensitive hashing finds the candidates
(Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3), and only those whose sets of shingles
have a true Jaccard index of the threshold or more count.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from tokenclean.errors import needs_extra
from tokenclean.executors import LOCAL, Executor, Item
from tokenclean.pool.conversation import Conversation
from tokenclean.pool.word_ngrams import WordHashes, ngram_hashes, pieces_of, texts_of
from tokenclean.ragged import Ragged

SHINGLE_PIECES = 5
PERMUTATIONS = 128
MISSED_SHARE = 0.001
"""Of pairs exactly as similar as the threshold, the share that may go unfound; of more similar ones it is smaller."""

_SEED = 1
_LOW_BITS = np.uint64(0xFFFFFFFF)  # of a hash: the library permutes 32-bit values
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Duplicate:
    """Row ``row`` repeats the earlier row ``of``. ``similarity``: Jaccard index of their shingles, 1.0 if exact."""

    row: int
    of: int
    similarity: float = 1.0


def exact_duplicates(conversations: Sequence[Conversation]) -> list[Duplicate]:
    """Every row with the same folded content as an earlier row, with the first such row; in the order of the rows.

    Roles, contents, reasoning and tool calls of all turns and the tools on offer have to agree; whether they came as a
    chat or as a completion does not matter. Tokenized rows agree in ids and labels.
    """
    first: dict[bytes, int] = {}
    found = []
    for row, conversation in enumerate(conversations):
        of = first.setdefault(content_key(conversation), row)
        if of != row:
            found.append(Duplicate(row, of))
    return found


def near_duplicates(
    conversations: Sequence[Conversation], threshold: float, executor: Executor = LOCAL
) -> list[Duplicate]:
    """Every row that resembles an earlier row which itself stays: the first of a cluster stays, and a row goes only for
    one it truly resembles, never for a chain of others between them.

    ``threshold``: least Jaccard index of the sets of shingles, in (0, 1]. Two rows at the threshold or above go unfound
    with a chance of at most ``MISSED_SHARE``; the same rows always give the same answer. A row that resembles several
    goes for the first. ``executor``: who computes the signatures; rows are compared here. Raises MissingExtraError
    without ``datasketch``.
    """
    with needs_extra("datasketch", "curate", "finding near-duplicates (pool.filters.duplicates)"):
        import datasketch
    index: Any = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=choose_bands(threshold))
    sketch, found = _empty_sketch(), []
    sets: list[Ragged] = []  # of each block of rows
    with executor.open(SketchWork()) as compute:
        for block, (shingles_of_row, signatures) in compute(_blocks(conversations)):
            sets.append(shingles_of_row)
            for row, (values, signature) in enumerate(zip(shingles_of_row, signatures, strict=True), block.key):
                if not len(values):
                    continue
                sketch.hashvalues = signature.astype(np.uint64)
                similar = (
                    Duplicate(row, of, jaccard_index(values, sets[of // _BLOCK_ROWS][of % _BLOCK_ROWS]))
                    for of in sorted(index.query(sketch))
                )
                duplicate = next((pair for pair in similar if pair.similarity >= threshold), None)
                if duplicate is None:
                    index.insert(row, sketch, check_duplication=False)
                else:
                    found.append(duplicate)
    return found


@dataclass(frozen=True)
class SketchWork:
    """What near-duplicates are found by, as a ``Work``: of each row its shingles and its MinHash signature, uint32
    (rows, ``PERMUTATIONS``)."""

    @contextmanager
    def opened(self) -> Iterator[Callable[[Sequence[Conversation]], tuple[Ragged, np.ndarray]]]:
        """A block with the function that computes them for some rows."""
        hashes, empty = WordHashes(), _empty_sketch()

        def compute(rows: Sequence[Conversation]) -> tuple[Ragged, np.ndarray]:
            sets = shingles(rows, hashes)
            signatures = np.empty((len(rows), PERMUTATIONS), dtype=np.uint32)
            for row, values in enumerate(sets):
                sketch = empty.copy()  # a new one would draw its permutations again
                sketch.update_batch((values & _LOW_BITS).tolist())
                signatures[row] = sketch.hashvalues
            return sets, signatures

        yield compute


def _empty_sketch() -> Any:
    import datasketch

    return datasketch.MinHash(num_perm=PERMUTATIONS, seed=_SEED, hashfunc=int)


def _blocks(conversations: Sequence[Conversation]) -> Iterator[Item[int, Sequence[Conversation]]]:
    """Blocks of rows, known by their first row."""
    for number, start in enumerate(range(0, len(conversations), _BLOCK_ROWS)):
        rows = conversations[start : start + _BLOCK_ROWS]
        what = f"signatures of rows {start:,} to {start + len(rows) - 1:,}"
        yield Item(start, number, partial(tuple, rows), what, lambda rows=rows: [row.id for row in rows])


def shingles(conversations: Sequence[Conversation], hashes: WordHashes | None = None) -> Ragged:
    """Set of shingles of each row: hashes (uint64, ascending, each once) of its runs of five pieces.

    Pieces are words and symbols of everything the row says, and the ids of a tokenized row. A row of fewer pieces is
    one shingle as a whole. ``hashes``: those of words seen before.
    """
    pieces = (WordHashes() if hashes is None else hashes).of_texts([_pieces(row) for row in conversations])
    sets: list[np.ndarray] = []
    for run, row in zip(ngram_hashes(pieces, SHINGLE_PIECES), pieces, strict=True):
        if len(row) and not len(run):
            run = ngram_hashes(Ragged.from_rows([row], np.uint64), len(row)).values
        sets.append(np.unique(run))
    return Ragged.from_rows(sets, np.uint64)


def jaccard_index(first: np.ndarray, second: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sets, each an ascending array without repetition; 1.0 for two empty ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - shared
    return shared / either if either else 1.0


def choose_bands(threshold: float) -> tuple[int, int]:
    """Number of bands b and rows r of each, with b·r ≤ ``PERMUTATIONS``: the largest r with which a pair at the
    threshold t is missed with a chance (1 − tʳ)ᵇ of at most ``MISSED_SHARE``."""
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= MISSED_SHARE:
            return bands, rows
    return PERMUTATIONS, 1


def _pieces(conversation: Conversation) -> list[str]:
    if conversation.tokens is not None:
        return [f"{id} " for id in conversation.tokens.input_ids.tolist()]  # no text has a piece with a space
    return [piece for text in texts_of(conversation) for piece in pieces_of(text)]


def content_key(conversation: Conversation) -> bytes:
    """16 bytes that two rows share where ``exact_duplicates`` takes them for the same."""
    if conversation.tokens is not None:
        tokens = conversation.tokens
        return blake2b(b"tokens" + tokens.input_ids.tobytes() + tokens.is_response.tobytes(), digest_size=16).digest()
    turns = [
        [turn.role, _fold(turn.content), _fold(turn.reasoning), [[c.name, _fold(c.arguments)] for c in turn.tool_calls]]
        for turn in conversation.turns
    ]
    content = json.dumps([turns, conversation.tools], ensure_ascii=False, separators=(",", ":"))
    return blake2b(content.encode(), digest_size=16).digest()


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
