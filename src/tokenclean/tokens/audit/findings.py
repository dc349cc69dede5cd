"""What a check may say about a row, and how it is shown: the tokens around it, what is trained and what is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from tokenclean.checks.findings import Example as TextExample
from tokenclean.tokens.audit.audit_row import AuditRow
from tokenclean.tokens.audit.vocabulary import Vocabulary

NO_MARKERS = "the ids hold no role marker of a known template, so nothing shows where an answer begins or ends"
SELECTED = "labels have gaps inside answers, as token selection leaves them, so a masked token is no fault"

# Ends of the reasons for which the pool sets a row aside, where a check of its own reports the row.
BLANK_RESPONSE = ": blank response"
NOT_TRAINED = "every assistant turn is marked as not trained, so there is no response to train on"

_TOKENS_BEFORE, _TOKENS_AFTER, _TOKENS_AT_FAULT = 12, 8, 24


@dataclass(frozen=True)
class Finding:
    """A fault of one row. ``text``: what it is, in words. ``spans``: token spans [start, end) at fault, in order; none
    if the row as a whole is."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Unjudged:
    """The check cannot judge the row, for this reason."""

    reason: str


RowResult = Finding | Unjudged | None


@dataclass(frozen=True)
class Piece:
    """Tokens of an example that are alike, as text."""

    text: str
    is_trained: bool
    is_at_fault: bool


@dataclass(frozen=True)
class Example:
    """One finding, shown.

    ``row``/``place``: the row's id and ``file:line``. ``text``: the fault in words. ``start``/``end``: the first token
    span at fault (both 0 if there is none). ``pieces``: the tokens around it; for a row without tokens the beginning of
    its text in the file. ``starts_row``/``ends_row``: they include the row's first token, its last one.
    """

    row: str
    place: str
    text: str
    start: int
    end: int
    pieces: tuple[Piece, ...]
    starts_row: bool
    ends_row: bool


def make_example(finding: Finding, row: AuditRow, vocabulary: Vocabulary) -> Example:
    """The finding with the tokens around its first span, or the row's first tokens if it has no span."""
    if not len(row):
        return Example(row.id, row.place, finding.text, 0, 0, (Piece(row.text, False, False),), True, True)
    start, end = finding.spans[0] if finding.spans else (0, 0)
    shown = min(end, start + _TOKENS_AT_FAULT) if finding.spans else _TOKENS_AT_FAULT
    first, last = max(0, start - _TOKENS_BEFORE), min(len(row), shown + _TOKENS_AFTER)
    pieces = tuple(_pieces(row, range(first, last), finding, vocabulary))
    return Example(row.id, row.place, finding.text, start, end, pieces, first == 0, last == len(row))


def show_text(example: TextExample) -> Example:
    """An example of a check of all rows, which looks at their texts and not at their tokens."""
    return Example(example.row, example.place, example.text, 0, 0, (Piece(example.excerpt, False, False),), True, True)


def _pieces(row: AuditRow, places: range, finding: Finding, vocabulary: Vocabulary) -> Iterator[Piece]:
    """Runs of tokens that are alike, decoded together so that a character split over tokens stays whole."""

    def kind(place: int) -> tuple[bool, bool]:
        return bool(row.is_response[place]), any(start <= place < end for start, end in finding.spans)

    for (is_trained, is_at_fault), run in groupby(places, kind):
        yield Piece(vocabulary.decode(row.input_ids[list(run)].tolist()), is_trained, is_at_fault)
