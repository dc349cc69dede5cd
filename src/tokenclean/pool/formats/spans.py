"""A row's ``spans``: loss weights of characters of its messages, as ``tokenclean export --to spans`` writes them.

``spans`` is a list of ``{message, start, end, weight}``: the number of the message from 0 (of a prompt and a completion
0 and 1), characters [start, end) of its content as the row gives it, and a weight from −1 to 1. The end token of an
answer of n characters is [n, n + 1). The weight of a message or of the row is that of its other tokens. A list of other
objects under this key is no list of weights, and stays unread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeGuard

from tokenclean.pool.conversation import Turn
from tokenclean.pool.formats.field_types import Row, RowError, check_object, quote
from tokenclean.pool.formats.loss_weights import Span, read_weight
from tokenclean.pool.formats.row_options import RowContext

KEY = "spans"


def read_spans(turns: tuple[Turn, ...], row: Row, context: RowContext) -> tuple[Turn, ...]:
    """The turns with the weights that the row's spans give their characters.

    Raises RowError for a span that is in no answer's content, for two that overlap or a message that states weights of
    its own parts too, and where the row's messages are not its turns one by one.
    """
    values = row.get(KEY)
    if KEY in context.options.ignored or not _are_weights(values):
        return turns
    context.consumed.add(KEY)
    if context.options.repair_thoughts:
        raise RowError(f"{KEY}: count characters of contents, which repair_thoughts changes; expected one of them")
    if (count := _count_messages(row)) not in (None, len(turns)):
        raise RowError(
            f"{KEY}: the row's {count} messages are read as {len(turns)} turns, so the number of a message is not "
            "clear; give the system text and the calls of one turn as one message each"
        )
    of_turn: dict[int, list[Span]] = {}
    for index, value in enumerate(values):
        number, span = _read_span(check_object(value, f"{KEY}[{index}]"), turns, f"{KEY}[{index}]")
        of_turn.setdefault(number, []).append(span)
    return tuple(_with_spans(turn, sorted(of_turn.get(n, ())), n) for n, turn in enumerate(turns))


def write_spans(turns: Sequence[Turn]) -> list[dict[str, object]]:
    """The spans of the turns as ``read_spans`` reads them."""
    return [
        {"message": number, "start": start, "end": end, "weight": weight}
        for number, turn in enumerate(turns)
        for start, end, weight in turn.spans
    ]


def _are_weights(values: object) -> TypeGuard[list[object]]:
    first = values[0] if isinstance(values, list) and values else None
    return isinstance(first, dict) and "message" in first and "weight" in first


def _count_messages(row: Row) -> int | None:
    """Messages that the row lists; None where it lists none."""
    for key in ("messages", "conversations"):
        if isinstance(messages := row.get(key), list):
            return len(messages)
    asked, answered = row.get("prompt"), row.get("completion")
    if not isinstance(asked, list) and not isinstance(answered, list):
        return None
    return sum(len(part) if isinstance(part, list) else 1 for part in (asked, answered))


def _read_span(value: Row, turns: Sequence[Turn], place: str) -> tuple[int, Span]:
    number, start, end = (_read_number(value, key, place) for key in ("message", "start", "end"))
    if number >= len(turns) or turns[number].role != "assistant":
        answers = [str(n) for n, turn in enumerate(turns) if turn.role == "assistant"]
        raise RowError(f"{place}.message: expected an answer, number {' or '.join(answers)}, found {number}")
    length = len(turns[number].content)
    if not start < end <= length + 1:
        raise RowError(
            f"{place}: expected 0 <= start < end <= {length + 1}, the content's length and one for the end token, "
            f"found {start} and {end}"
        )
    weight = read_weight({"weight": value.get("weight")}, place)
    if weight is None:
        raise RowError(f"{place}.weight: missing")
    if weight != 0 and not turns[number].is_trained:
        raise RowError(f"{place}: weight {weight:g} in message {number}, which is marked as not trained")
    return number, (start, end, weight)


def _read_number(value: Row, key: str, place: str) -> int:
    number = value.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise RowError(f"{place}.{key}: expected a whole number of at least 0, found {quote(number)}")
    return number


def _with_spans(turn: Turn, spans: Sequence[Span], number: int) -> Turn:
    if not spans or not turn.is_trained:
        return turn
    if turn.spans:
        raise RowError(f"{KEY}: message {number} has parts or details with weights of their own; expected one of them")
    if any(after[0] < before[1] for before, after in pairwise(spans)):
        raise RowError(f"{KEY}: two spans of message {number} overlap")
    return replace(turn, spans=tuple(span for span in spans if span[2] != turn.weight))
