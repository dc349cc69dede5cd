"""One row parsed: its format found, its keys accounted for (``known_formats`` has the formats); and one written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from tokenclean.pool.conversation import Conversation, Kind, LabelledTokens, Turn
from tokenclean.pool.formats.field_types import Row, RowError, check_text, describe_keys, holds_nothing
from tokenclean.pool.formats.known_formats import FORMATS, Parsed
from tokenclean.pool.formats.known_names import COMMON_KEYS, REQUIRED_KEYS, ROW_KEYS, ROW_WEIGHT_KEYS
from tokenclean.pool.formats.labelled_tokens import UNTRAINED
from tokenclean.pool.formats.loss_weights import read_weight
from tokenclean.pool.formats.preferences import refuse_preferences, take_chosen
from tokenclean.pool.formats.row_options import (
    RowContext,
    RowOptions,
    describe_needs,
    find_column,
    fits,
    map_columns,
    read_column,
)
from tokenclean.pool.formats.spans import KEY as SPANS
from tokenclean.pool.formats.spans import read_spans, write_spans
from tokenclean.pool.formats.suggestions import suggest_columns
from tokenclean.pool.formats.unread_keys import (
    PREFERENCE,
    SECOND_TEXT,
    SYSTEM_KEYS,
    TOOLS,
    check_unread,
    meaning_of,
    preference_label,
)

_TELLING_KEYS = tuple(dict.fromkeys(key for groups in REQUIRED_KEYS.values() for group in groups for key in group))
_WEIGHING_KEYS = frozenset((*ROW_WEIGHT_KEYS, "loss", "mask"))
_DEFAULT = RowOptions()


def parse_row(row: Row, options: RowOptions = _DEFAULT, *, is_padded: bool = False) -> Parsed:
    """Kind and content of one row.

    ``is_padded``: the row comes from an Arrow table, where keys that only other rows have hold null. In a chat, at
    least one assistant turn says something or calls a tool, and is trained. Raises RowError where the row is at fault.
    """
    context = RowContext(options, is_padded)
    if options.maps_rows:
        content = map_columns(row, options.columns)
    elif options.ignored.isdisjoint(row):
        content = row
    else:
        content = {key: value for key, value in row.items() if key not in options.ignored}
    if options.preferences == "chosen":
        if options.maps_rows:  # a label need not be mapped
            content = {k: v for k, v in row.items() if preference_label(str(k), v) is not None} | {**content}
        content = take_chosen(content, context)
    elif not options.maps_rows:
        refuse_preferences(row, context)
    format = detect_format(content, row) if options.format == "auto" else options.format
    parsed = FORMATS[format](content, context)
    parsed = _weigh(parsed, row, context)
    parsed = replace(parsed, turns=read_spans(parsed.turns, row, context))
    column = options.columns.get("id")
    original_id = _original_id(row if column is None else {"id": read_column(row, column, "id")}, context)
    unread = _unread(row, format, parsed, context)
    return replace(parsed, original_id=original_id, unread=unread, notes=tuple(context.notes), format=format)


def detect_format(row: Row, raw: Row | None = None) -> str:
    """The one format whose required keys are all in the row with a value other than null.

    ``text`` counts only where no other format fits, since many pools have the rendered text beside the messages.
    ``raw``: the row before its columns were mapped, for the message.

    Raises RowError where no format fits, or more than one: which of two texts is meant is never guessed.
    """
    fitting = _list_fitting(_given(row))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        reason = f"keys fit {' and '.join(fitting)}: name the format, or remove the keys of the others"
        raise RowError(reason, f"--format {fitting[0]}")
    if len(meant := _list_fitting(frozenset(key for key in _TELLING_KEYS if key in row))) == 1:
        return meant[0]  # a key that it needs holds null, which its parser reports
    raw = row if raw is None else raw
    reason, remedy = f"keys fit no format: found {describe_keys(raw)}", suggest_columns(raw)
    raise RowError(reason if remedy else f"{reason}; {describe_needs(REQUIRED_KEYS)}", remedy)


def write_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a row that ``parse_row`` reads back as the same conversation.

    First ``original_id`` (where it has one), ``id`` and ``source``, then the content in the format of its kind.

    A chat is written as ``messages``, a completion as ``prompt`` and ``completion``, plain text as ``text``, a row of
    tokens as ``input_ids`` and ``labels``. Weights of characters are weights of parts, and ``spans`` where an end token
    has a weight of its own. What is read from it again has the same content hash.
    """
    row: dict[str, Any] = {"original_id": conversation.original_id} if conversation.original_id else {}
    row |= {"id": conversation.id, "source": conversation.source}
    if conversation.tokens is not None:
        return row | _write_tokens(conversation.tokens)
    if conversation.kind == "completion":
        prompt, completion = conversation.turns
        row |= {"prompt": prompt.content, "completion": completion.content} | _write_weight(completion)
        return row | _write_spans(conversation)
    if conversation.kind == "text":
        (turn,) = conversation.turns
        return row | {"text": turn.content} | _write_weight(turn) | _write_spans(conversation)
    has_parts = all(end <= len(turn.content) for turn in conversation.turns for _, end, _ in turn.spans)
    row["messages"] = [_write_turn(turn, has_parts=has_parts) for turn in conversation.turns]
    row |= {"tools": json.loads(conversation.tools)} if conversation.tools else {}
    return row if has_parts else row | _write_spans(conversation)


def _write_spans(conversation: Conversation) -> dict[str, object]:
    spans = write_spans(conversation.turns)
    return {SPANS: spans} if spans else {}


def _given(row: Row) -> frozenset[str]:
    """The keys of the row, by which its format is known, that have a value."""
    return frozenset(key for key in _TELLING_KEYS if row.get(key) is not None)


@lru_cache
def _list_fitting(given: frozenset[str]) -> tuple[str, ...]:
    fitting = tuple(name for name in REQUIRED_KEYS if fits(name, given))
    return tuple(name for name in fitting if name != "text") or fitting


@lru_cache
def _keys_of_others(given: frozenset[str], format: str) -> frozenset[str]:
    """Keys of the row's other formats, which naming one of them leaves out."""
    others = (name for name in REQUIRED_KEYS if name != format and fits(name, given))
    return given.intersection(key for name in others for group in REQUIRED_KEYS[name] for key in group)


def _unread(row: Row, format: str, parsed: Parsed, context: RowContext) -> tuple[str, ...]:
    """Keys of the row, and of its messages, that hold something and were not used. Raises as ``check_unread``."""
    source = row.get("source")
    sources = ["source"] if not isinstance(source, str) and not holds_nothing(source) else []
    if context.options.maps_rows:
        unread = _unread_beside_columns(row, parsed, context)
        return (*unread, *sources, *context.unread)
    ignored, read = context.options.ignored, _read_keys(format, parsed.kind)
    if read.issuperset(row) and ignored.isdisjoint(row):
        return (*sources, *context.unread)
    exempt: tuple[str, ...] = ()
    if context.options.format != "auto":  # the user has chosen between the formats that the keys fit
        ignored |= _keys_of_others(_given(row), format)
    if parsed.kind in ("text", "tokens"):
        exempt = (SECOND_TEXT, TOOLS, *((PREFERENCE,) if parsed.kind == "text" else ()))
    if parsed.kind == "completion":
        _refuse_in_completion(row, ignored)
    texts = [turn.content for turn in parsed.turns]
    unread = check_unread(row, read | context.consumed, ignored, texts, exempt=exempt)
    return (*unread, *sources, *context.unread)


def _unread_beside_columns(row: Row, parsed: Parsed, context: RowContext) -> list[str]:
    """Unread keys of a row whose columns are mapped, and of the objects that these lead into."""
    places, ignored = frozenset(context.options.columns.values()), context.options.ignored
    texts = [turn.content for turn in parsed.turns]
    exempt = (SECOND_TEXT, *((PREFERENCE,) if any(meaning_of(place) == PREFERENCE for place in places) else ()))
    read = {*COMMON_KEYS, *places, *(place.split(".", 1)[0] for place in places)} - (places & ignored)
    unread = check_unread(row, read | context.consumed, ignored, texts, exempt=exempt, is_mapped=True)
    for parent, read_there in _parents(places).items():
        if isinstance(inner := find_column(row, parent), dict):
            found = check_unread(inner, read_there, ignored, texts, prefix=f"{parent}.", exempt=exempt, is_mapped=True)
            unread += [f"{parent}.{key}" for key in found]
    return unread


def _parents(places: Iterable[str]) -> dict[str, set[str]]:
    """Objects that mapped columns lead into -> their keys that are read."""
    found: dict[str, set[str]] = {}
    for place in places:
        parts = place.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    return found


def _refuse_in_completion(row: Row, ignored: frozenset[str]) -> None:
    """Raise RowError where a prompt and completion of text, which are joined without tags, have what needs a chat."""
    further = [key for key in (*SYSTEM_KEYS, "tools") if key not in ignored and not holds_nothing(row.get(key))]
    if further:
        columns = {"instruction": "prompt", "output": "completion"}
        columns |= {"tools" if key == "tools" else "system": key for key in further}
        options = " ".join(f"--column {ours}={theirs}" for ours, theirs in columns.items())
        reason = f"{further[0]}: given beside a prompt and a completion of text, which are joined without tags"
        raise RowError(reason, f"{options} (reads the row as a chat)")


@lru_cache
def _read_keys(format: str, kind: Kind) -> frozenset[str]:
    keys = {*ROW_KEYS[format], *COMMON_KEYS, *ROW_WEIGHT_KEYS}
    if kind == "completion":
        return frozenset(keys - {"tools", "system"})  # a completion has neither: refused where it is given
    return frozenset(keys | ({*SYSTEM_KEYS, "functions"} if kind == "chat" else set()))


def _original_id(row: Row, context: RowContext) -> str:
    """The row's own id as text; empty for none, and for one that is neither text nor a whole number."""
    key = next((key for key in ("original_id", "id") if not holds_nothing(row.get(key))), None)
    if key is None:
        return ""
    value = row[key]
    if isinstance(value, float) and value.is_integer():  # pandas writes a column with gaps like this
        value = int(value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return check_text(str(value), key)
        except (RowError, ValueError):  # ValueError: more digits than Python writes
            pass
    context.unread[key] = None
    return ""


def _weigh(parsed: Parsed, row: Row, context: RowContext) -> Parsed:
    """The content with the row's own loss weight on all that it trains. Raises RowError for a weight of 0."""
    if _WEIGHING_KEYS.isdisjoint(row):
        return parsed
    stated = {key: row[key] for key in ROW_WEIGHT_KEYS if key in row and key not in context.options.ignored}
    if isinstance(row.get("loss"), bool):
        stated["loss"] = row["loss"]
        context.consumed.add("loss")
    if isinstance(mask := row.get("mask"), str) and context.options.role_of.get(mask.strip().lower()) == "user":
        context.consumed.add("mask")  # NeMo's name of the role that is not trained
    tokens = parsed.tokens
    if tokens is not None:  # a list there weighs the tokens one by one
        stated = {key: value for key, value in stated.items() if not isinstance(value, list)}
    weight = read_weight(stated, "")
    if weight is None or weight == 1:
        return parsed
    if weight == 0:
        raise RowError(f"{' and '.join(stated)}: the row is marked as not trained", is_chosen=True)
    if tokens is not None:
        tokens = _weigh_tokens(tokens, weight)
    turns = tuple(
        replace(turn, weight=turn.weight * weight, spans=tuple((a, b, w * weight) for a, b, w in turn.spans))
        if turn.role == "assistant" and turn.is_trained
        else turn
        for turn in parsed.turns
    )
    return replace(parsed, turns=turns, tokens=tokens)


def _weigh_tokens(tokens: LabelledTokens, weight: float) -> LabelledTokens:
    own = np.ones(len(tokens.input_ids), np.float32) if tokens.weight is None else tokens.weight
    weights = (own * weight).astype(np.float32)
    if weight > 0:
        return replace(tokens, weight=weights)
    # What was trained is unlearned, and what was unlearned is trained; the others stay context.
    weights = np.where(tokens.is_response | (own < 0), weights, np.float32(0))
    return replace(tokens, is_response=weights > 0, weight=weights)


def _write_tokens(tokens: LabelledTokens) -> dict[str, object]:
    ids, labels = tokens.input_ids.tolist(), tokens.is_response.tolist()
    labels = [id if is_response else UNTRAINED for id, is_response in zip(ids, labels, strict=True)]
    weights = {} if tokens.weight is None else {"token_weight": tokens.weight.tolist()}
    return {"input_ids": ids, "labels": labels, **weights}


def _write_turn(turn: Turn, *, has_parts: bool) -> dict[str, object]:
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        | ({"id": call.id} if call.id else {})
        for call in turn.tool_calls
    ]
    message: dict[str, object] = {
        "role": turn.role,
        "content": _write_parts(turn) if turn.spans and has_parts else turn.content,
    }
    optional = {
        "reasoning_content": turn.reasoning or None,
        "tool_calls": calls or None,
        **_write_weight(turn),
        "train": None if turn.is_trained else False,
        "name": turn.name or None,
        "tool_call_id": turn.call_id or None,
    }
    return message | {key: value for key, value in optional.items() if value is not None}


def _write_weight(turn: Turn) -> dict[str, object]:
    """The turn's loss weight, where it is not 1."""
    return {"weight": turn.weight} if turn.weight != 1 else {}


def _write_parts(turn: Turn) -> list[dict[str, object]]:
    """The content in parts; a part with a weight of its own states it."""
    parts: list[dict[str, object]] = []
    done = 0
    for start, end, weight in turn.spans:
        parts.append({"type": "text", "text": turn.content[done:start]})
        parts.append({"type": "text", "text": turn.content[start:end], "weight": weight})
        done = end
    parts.append({"type": "text", "text": turn.content[done:]})
    return [part for part in parts if part["text"]]
