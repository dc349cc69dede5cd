"""Passages that many rows share word for word: boilerplate, which per-token losses cannot distinguish from answers.

A model soon finds boilerplate likely, so neither loss nor score shows it; that the same n tokens occur in many rows
does. Templates of classification or code data repeat as well: look at the passages before dropping them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.recipe.cleaning_settings import RepetitionSettings
from tokenclean.selection.response_tokens import check_ids, on_response, response_indices


@dataclass(frozen=True)
class Passage:
    """A sequence of response tokens, and how often it occurs."""

    input_ids: tuple[int, ...]
    rows: int
    """In how many different rows."""
    occurrences: int
    """How many times in all."""


@dataclass(frozen=True, eq=False)
class Repetition:
    """What ``find_repetition`` found."""

    is_repeated: Ragged
    """Bool, aligned: True on each response token inside a repeated n-gram."""
    passages: tuple[Passage, ...]
    """The longest unbroken runs of repeated tokens, n tokens or more, equal ones counted together: by rows (most
    first), then by ids. Each occurrence is a whole run, so a sentence that continues differently in one row is
    another passage there, and a passage may have fewer rows than its n-grams."""
    needed_rows: int
    """In how many rows an n-gram had to occur."""


def find_repetition(input_ids: Ragged, is_response: Ragged, settings: RepetitionSettings) -> Repetition:
    """Response tokens inside an n-gram that many rows share.

    An n-gram is ``n`` response tokens at adjacent positions of one row. It is repeated when it occurs in at least
    ``minimum_rows`` rows and in at least the share ``row_share`` of the rows that have a response token (the
    decimal number as written: 0.07 of 100 rows are 7); a row counts once, however often it holds it. ``input_ids``:
    integers; ``is_response``: bool ỹ, same rows. Exact: no n-gram is taken for another. O(n·R log R) for R
    response tokens, and about 200 bytes of memory a token.

    Raises ValueError for columns that are not aligned or of another dtype.
    """
    indices = response_indices(is_response, input_ids)
    check_ids(input_ids)

    row_R = is_response.row_of_value()[indices]
    ids_R = input_ids.values[indices]
    rows_with_response = int(np.count_nonzero(np.bincount(row_R)))
    needed_rows = max(settings.minimum_rows, math.ceil(Fraction(str(settings.row_share)) * rows_with_response))

    is_first_R = _is_first_of_run(indices, row_R)
    starts = _repeated_ngrams(ids_R, row_R, is_first_R, settings.n, needed_rows)
    inside_R = _inside(starts, settings.n, len(indices))
    passages = _passages(ids_R, row_R, is_first_R, inside_R)
    return Repetition(on_response(is_response, inside_R), passages, needed_rows)


def _is_first_of_run(indices: np.ndarray, row: np.ndarray) -> np.ndarray:
    """True where a response token does not follow a response token of its row directly, bool, shape (R,)."""
    is_first = np.ones(len(indices), dtype=bool)
    is_first[1:] = (np.diff(indices) != 1) | (np.diff(row) != 0)
    return is_first


def _repeated_ngrams(ids: np.ndarray, row: np.ndarray, is_first: np.ndarray, n: int, needed_rows: int) -> np.ndarray:
    """Where the repeated n-grams start among the response tokens, int64, rising.

    A k-gram's number is the rank of the pair (number of its first k - 1 tokens, last token): equal numbers mean equal
    tokens, and numbers rise as the ids do. What occurs fewer than ``needed_rows`` times cannot begin a repeated n-gram
    and is dropped before the next token is considered.
    """
    distinct_ids, token, counts = np.unique(ids, return_inverse=True, return_counts=True)
    is_rare = counts[token] < needed_rows
    is_break = is_first | is_rare
    is_break[1:] |= is_rare[:-1]
    stretch = np.cumsum(is_break)
    starts = np.flatnonzero(stretch[: max(len(ids) - n + 1, 0)] == stretch[n - 1 :])
    number = token[starts]
    for further in range(1, n):
        pairs = number * len(distinct_ids) + token[starts + further]
        _, number, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        is_frequent = counts[number] >= needed_rows
        starts, number = starts[is_frequent], number[is_frequent]

    rows_of_number = _rows_of_number(number, row[starts])
    return starts[rows_of_number[number] >= needed_rows]


def _rows_of_number(number: np.ndarray, row: np.ndarray) -> np.ndarray:
    """In how many different rows each number occurs, int64, indexed by number; rows rise."""
    by_number = np.argsort(number, kind="stable")
    number, row = number[by_number], row[by_number]
    is_new = np.ones(len(number), dtype=bool)
    is_new[1:] = (np.diff(number) != 0) | (np.diff(row) != 0)
    return np.bincount(number[is_new])


def _inside(starts: np.ndarray, n: int, tokens: int) -> np.ndarray:
    """Which of the response tokens lie within ``n`` of a start, bool, shape (``tokens``,)."""
    steps = np.zeros(tokens + 1, dtype=np.int64)
    steps[starts] += 1
    steps[starts + n] -= 1
    return np.cumsum(steps[:-1]) > 0


def _passages(ids: np.ndarray, row: np.ndarray, is_first: np.ndarray, inside: np.ndarray) -> tuple[Passage, ...]:
    """The longest unbroken runs of tokens ``inside``, equal ones counted together."""
    continues = np.zeros(len(inside), dtype=bool)
    continues[1:] = inside[1:] & inside[:-1] & ~is_first[1:]
    is_last = inside.copy()
    is_last[:-1] &= ~continues[1:]
    begins = np.flatnonzero(inside & ~continues)
    ends = np.flatnonzero(is_last) + 1
    rows_of: dict[bytes, list[int]] = {}
    for begin, end, in_row in zip(begins.tolist(), ends.tolist(), row[begins].tolist(), strict=True):
        rows_of.setdefault(ids[begin:end].tobytes(), []).append(in_row)
    passages = [
        Passage(tuple(np.frombuffer(content, ids.dtype).tolist()), len(set(rows)), len(rows))
        for content, rows in rows_of.items()
    ]
    return tuple(sorted(passages, key=lambda passage: (-passage.rows, passage.input_ids)))
