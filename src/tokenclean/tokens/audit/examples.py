"""A finding shown: the tokens around it, with what is trained and what is at fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenclean.tokens.audit.audit_row import AuditRow
from tokenclean.tokens.audit.finding import Finding
from tokenclean.tokens.audit.vocabulary import Vocabulary

_TOKENS_BEFORE, _TOKENS_BEHIND, _TOKENS_AT_FAULT = 12, 8, 24


@dataclass(frozen=True)
class Piece:
    """Tokens of an example that are alike, as text."""

    text: str
    is_trained: bool
    is_at_fault: bool


@dataclass(frozen=True)
class Example:
    """One finding. ``row``/``place``: the row's id and ``file:line``. ``text``: the fault in words. ``start``/``end``:
    the first token span at fault (both 0 where there is none). ``pieces``: the tokens around it, of a row without
    tokens the beginning of what stood in the file. ``starts_row``/``ends_row``: they hold the row's first token, its
    last one."""

    row: str
    place: str
    text: str
    start: int
    end: int
    pieces: tuple[Piece, ...]
    starts_row: bool
    ends_row: bool


def make_example(finding: Finding, row: AuditRow, vocabulary: Vocabulary) -> Example:
    """The finding with the tokens around its first span, or the row's first tokens where it has no span."""
    if not len(row):
        return Example(row.id, row.place, finding.text, 0, 0, (Piece(row.text, False, False),), True, True)
    start, end = finding.spans[0] if finding.spans else (0, 0)
    shown = min(end, start + _TOKENS_AT_FAULT) if finding.spans else _TOKENS_AT_FAULT
    first, last = max(0, start - _TOKENS_BEFORE), min(len(row), shown + _TOKENS_BEHIND)
    pieces = tuple(_pieces(row, first, last, finding.spans, vocabulary))
    return Example(row.id, row.place, finding.text, start, end, pieces, first == 0, last == len(row))


def _pieces(
    row: AuditRow, first: int, last: int, spans: Sequence[tuple[int, int]], vocabulary: Vocabulary
) -> Iterator[Piece]:
    """Runs of tokens that are alike, decoded together so that a character split over tokens stays whole."""

    def kind(place: int) -> tuple[bool, bool]:
        return bool(row.is_response[place]), any(start <= place < end for start, end in spans)

    run: list[int] = []
    for place in range(first, last):
        run.append(int(row.input_ids[place]))
        if place + 1 == last or kind(place + 1) != kind(place):
            yield Piece(vocabulary.decode(run), *kind(place))
            run = []
