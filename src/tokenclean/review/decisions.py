"""One person's decision on a span, on a phrase, or to take back an earlier decision; as a line of ``review.jsonl``.

Characters of a span are code points of the message's content, end excluded; the end token of a content of n characters
is [n, n + 1). A row that came tokenized has no text, and its decisions name token positions instead, by other keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

Kind = Literal["keep", "drop", "weight"]


@dataclass(frozen=True)
class Signature:
    """``decision``: an id of its own. ``who``: the name of a person. ``when``: UTC, ISO 8601."""

    decision: str
    who: str
    when: str


@dataclass(frozen=True)
class SpanDecision:
    """The weight of characters [start, end) of the content of message ``message`` (from 0) of a row.

    ``id``: the row's stable id, ``original_id``: its own id, or empty. ``weight``: 1 for keep, 0 for drop, or one
    between. ``text``: the characters, by which a changed text is noticed.
    """

    signature: Signature
    kind: Kind
    id: str
    original_id: str
    message: int
    start: int
    end: int
    weight: float
    text: str


@dataclass(frozen=True)
class TokenDecision:
    """The weight of tokens [token_start, token_end) of a row that came tokenized. ``input_ids``: theirs, by which a
    changed row is noticed; the rest as of ``SpanDecision``."""

    signature: Signature
    kind: Kind
    id: str
    original_id: str
    token_start: int
    token_end: int
    weight: float
    input_ids: tuple[int, ...]


@dataclass(frozen=True)
class PhraseDecision:
    """Every occurrence of ``phrase`` in an answer is dropped (``review.phrases.find_phrase``)."""

    kind: ClassVar[Literal["drop_everywhere"]] = "drop_everywhere"
    signature: Signature
    phrase: str

    @property
    def weight(self) -> float:
        """0: the phrase is never trained."""
        return 0.0


@dataclass(frozen=True)
class Undo:
    """Takes back the decision with the id ``undoes``."""

    kind: ClassVar[Literal["undo"]] = "undo"
    signature: Signature
    undoes: str


Weighing = SpanDecision | TokenDecision | PhraseDecision
Decision = Weighing | Undo


class LineError(ValueError):
    """A line that is no decision; the text names the key, what was expected and what was found."""


def to_line(decision: Decision) -> str:
    """The decision as a line of JSON, without the line's end."""
    fields = asdict(decision)
    signature = fields.pop("signature")
    return json.dumps({"kind": decision.kind, **signature, **fields}, ensure_ascii=False)


def from_line(line: str) -> Decision:
    """The decision that a line holds. Raises LineError for one that holds none. Keys that it does not know are left
    unread."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(f"expected a JSON object, found {_shown(line)} ({error})") from error
    if not isinstance(values, dict):
        raise LineError(f"expected a JSON object, found {_shown(line)}")
    return decision_of(values)


def decision_of(values: Mapping[str, object]) -> Decision:
    """The decision with these keys and values. Raises LineError."""
    kind = _text(values, "kind")
    signature = Signature(*(_text(values, key, blank=False) for key in ("decision", "who", "when")))
    if kind == "undo":
        return Undo(signature, _text(values, "undoes", blank=False))
    if kind == "drop_everywhere":
        return PhraseDecision(signature, _text(values, "phrase", blank=False))
    if kind not in ("keep", "drop", "weight"):
        raise LineError(f"kind: expected keep, drop, weight, drop_everywhere or undo, found {kind!r}")
    row = _text(values, "id", blank=False), _text(values, "original_id")
    weight = _weight(values, kind)
    if "token_start" in values:
        start, end = _range(values, "token_start", "token_end")
        ids = values.get("input_ids")
        if not isinstance(ids, list) or len(ids) != end - start or not all(_is_whole(token) for token in ids):
            raise LineError(f"input_ids: expected the {end - start} token ids of the span, found {_shown(ids)}")
        return TokenDecision(signature, kind, *row, start, end, weight, tuple(ids))
    start, end = _range(values, "start", "end")
    message = values.get("message")
    if not isinstance(message, int) or not _is_whole(message):
        raise LineError(f"message: expected the number of a message, from 0, found {_shown(message)}")
    return SpanDecision(signature, kind, *row, message, start, end, weight, _text(values, "text"))


def in_force(decisions: Iterable[Decision]) -> list[Weighing]:
    """The decisions that nobody took back, in their order; of several with one id, as in a file that was appended to
    itself, the first."""
    decisions = list(decisions)
    undone = {decision.undoes for decision in decisions if isinstance(decision, Undo)}
    first: dict[str, Weighing] = {}
    for decision in decisions:
        if not isinstance(decision, Undo) and decision.signature.decision not in undone:
            first.setdefault(decision.signature.decision, decision)
    return list(first.values())


def people_of(decisions: Sequence[Decision]) -> list[str]:
    """Their names, in the order of their first decisions."""
    return list(dict.fromkeys(decision.signature.who for decision in decisions))


def _text(values: Mapping[str, object], key: str, *, blank: bool = True) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not (blank or value.strip()):
        raise LineError(f"{key}: expected a text{'' if blank else ' that is not blank'}, found {_shown(value)}")
    if not _is_utf8(value):
        raise LineError(f"{key}: expected text that is valid UTF-8, found {_shown(value)}")
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _weight(values: Mapping[str, object], kind: str) -> float:
    value = values.get("weight")
    fixed = {"keep": 1, "drop": 0}.get(kind)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 and fixed in (None, value):
        return float(value)
    expected = f"{fixed}, since the kind is {kind}" if fixed is not None else "a number from 0 to 1"
    raise LineError(f"weight: expected {expected}, found {_shown(value)}")


def _range(values: Mapping[str, object], first: str, last: str) -> tuple[int, int]:
    start, end = values.get(first), values.get(last)
    if not (isinstance(start, int) and isinstance(end, int) and _is_whole(start) and _is_whole(end) and start < end):
        raise LineError(f"{first}, {last}: expected whole numbers, 0 <= {first} < {last}, found {start!r} and {end!r}")
    return start, end


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
