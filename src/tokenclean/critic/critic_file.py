"""What two readings make of each row, and the file of it, which the strategy ``given`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tokenclean.checks.findings import answers_of
from tokenclean.critic.reading import Reading, ShownRow
from tokenclean.critic.sentences import Sentence
from tokenclean.errors import TableError
from tokenclean.pool.intake import write_lines
from tokenclean.pool.reading import read_records
from tokenclean.tokens.weight_spans import WeightSpan

MOST_MASKED = 0.5
"""A row of which a larger share of the sentences is masked is dropped whole."""

State = Literal["read", "dropped", "unreadable", "too_long", "no_sentences", "not_asked"]
"""What became of a row. ``unreadable``: no answer of a reading could be read, or the server refused the row;
``too_long``: not even one sentence fits the prompt; ``no_sentences``: it came tokenized, or its answers hold no words;
``not_asked``: behind the last row that was to be read. All but the first two are kept whole."""

STATES: dict[State, str] = {
    "read": "read",
    "dropped": "dropped whole, more than half of the sentences being masked",
    "unreadable": "kept whole: no answer about them could be read",
    "too_long": "kept whole: too long to be shown",
    "no_sentences": "kept whole: no sentences in their answers, or no text",
    "not_asked": "kept whole: not asked about",
}


@dataclass(frozen=True)
class NamedSpan:
    """Characters [start, end) of the content of message ``message`` were named in so many (``times``) of the readings.
    ``reason``: that of the first of these, or empty."""

    message: int
    start: int
    end: int
    times: int
    reason: str


@dataclass(frozen=True)
class CriticRow:
    """``sentences``: of the row; ``shown``: how many of them were read. ``named``: in order; ``spans``: what is not
    trained."""

    id: str
    original_id: str
    state: State
    sentences: int
    shown: int
    named: tuple[NamedSpan, ...] = ()
    spans: tuple[WeightSpan, ...] = ()


def unread_row(row: ShownRow, state: State) -> CriticRow:
    """A row that is kept whole since nobody read it."""
    return CriticRow(row.conversation.id, row.conversation.original_id, state, len(row.sentences), 0)


def masked_by(readings: Sequence[Reading]) -> set[int]:
    """The sentences that every reading names."""
    return set.intersection(*({named.sentence for named in reading} for reading in readings))


def judged_row(row: ShownRow, readings: Sequence[Reading | None]) -> CriticRow:
    """What the readings make of a row.

    Sentences that all of them name have weight 0. Where these are more than ``MOST_MASKED`` of the row's sentences, the
    row is dropped: all of each answer, with its end token. A row with a reading that could not be read is kept whole.
    """
    read = [reading for reading in readings if reading is not None]
    if len(read) < len(readings):
        return unread_row(row, "unreadable")
    conversation = row.conversation
    reasons: dict[int, list[str]] = {}
    for reading in read:
        for named in reading:
            reasons.setdefault(named.sentence, []).append(named.reason)
    named = tuple(_named(row.sentences[place], reasons[place]) for place in sorted(reasons))
    masked = sorted(masked_by(read))
    is_dropped = len(masked) > MOST_MASKED * len(row.sentences)
    if is_dropped:
        spans = tuple(WeightSpan(number, 0, len(turn.content) + 1, 0.0) for number, turn in answers_of(conversation))
    else:
        places = [row.sentences[place] for place in masked]
        spans = tuple(WeightSpan(place.message, place.start, place.end, 0.0) for place in places)
    state: State = "dropped" if is_dropped else "read"
    count = len(row.sentences)
    return CriticRow(conversation.id, conversation.original_id, state, count, row.shown, named, spans)


def write_critic(path: Path | str, rows: Sequence[CriticRow]) -> None:
    """Write JSON lines, one a row: its fields, and ``dropped`` (bool). Raises RunFolderError where the file cannot be
    written."""
    write_lines(({**asdict(row), "dropped": row.state == "dropped"} for row in rows), path)


def read_named(path: Path | str) -> dict[str, tuple[NamedSpan, ...]]:
    """Row id -> what the critic named there, of a file that ``write_critic`` wrote; only rows with something named.

    Raises PoolError for a file that cannot be read, TableError for a row without an id or with something else in
    ``named``.
    """
    found: dict[str, tuple[NamedSpan, ...]] = {}
    for record in read_records(Path(path)):
        place = f"{path}:{record.line}"
        if record.row is None:
            raise TableError(f"{place}: {record.fault}")
        name, named = record.row.get("id"), record.row.get("named")
        if not isinstance(name, str) or not isinstance(named, list):
            raise TableError(
                f"{place}: expected id (text) and named (list), as `tokenclean critic` writes them, found id "
                f"{name!r:.40} and named {named!r:.40}"
            )
        if spans := tuple(_span_of(one, place) for one in named):
            found[name] = spans
    return found


def _named(sentence: Sentence, reasons: Sequence[str]) -> NamedSpan:
    reason = next(filter(None, reasons), "")
    return NamedSpan(sentence.message, sentence.start, sentence.end, len(reasons), reason)


def _span_of(value: object, place: str) -> NamedSpan:
    held: Mapping[str, object] = value if isinstance(value, Mapping) else {}
    numbers = [held.get(key) for key in ("message", "start", "end", "times")]
    whole = [number for number in numbers if isinstance(number, int) and not isinstance(number, bool) and number >= 0]
    if len(whole) < len(numbers):
        raise TableError(f"{place}: named: expected whole numbers message, start, end and times, found {value!r:.80}")
    return NamedSpan(*whole, reason=str(held.get("reason") or ""))
