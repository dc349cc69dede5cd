"""A conversation written as a row that ``parse_row`` reads back as the same conversation."""

from __future__ import annotations

import json
from typing import Any

from tokenclean.pool.conversation import Conversation, LabelledTokens, Turn
from tokenclean.pool.formats.labelled_tokens import UNTRAINED


def write_row(conversation: Conversation) -> dict[str, Any]:
    """``original_id`` (where the row has one), ``id`` and ``source``, then the conversation's content in the format of
    its kind.

    A chat is written as ``messages``, a completion as ``prompt`` and ``completion``, plain text as ``text``, a row of
    tokens as ``input_ids`` and ``labels``. What is read from it again has the same content hash.
    """
    row: dict[str, Any] = {"original_id": conversation.original_id} if conversation.original_id else {}
    row |= {"id": conversation.id, "source": conversation.source}
    if conversation.tokens is not None:
        return row | _write_tokens(conversation.tokens)
    if conversation.kind == "completion":
        prompt, completion = conversation.turns
        return row | {"prompt": prompt.content, "completion": completion.content} | _write_weight(completion)
    if conversation.kind == "text":
        (turn,) = conversation.turns
        return row | {"text": turn.content} | _write_weight(turn)
    row["messages"] = [_write_turn(turn) for turn in conversation.turns]
    return row | ({"tools": json.loads(conversation.tools)} if conversation.tools else {})


def _write_tokens(tokens: LabelledTokens) -> dict[str, object]:
    ids, labels = tokens.input_ids.tolist(), tokens.is_response.tolist()
    labels = [id if is_response else UNTRAINED for id, is_response in zip(ids, labels, strict=True)]
    weights = {} if tokens.weight is None else {"token_weight": tokens.weight.tolist()}
    return {"input_ids": ids, "labels": labels, **weights}


def _write_turn(turn: Turn) -> dict[str, object]:
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        | ({"id": call.id} if call.id else {})
        for call in turn.tool_calls
    ]
    message: dict[str, object] = {"role": turn.role, "content": _write_parts(turn) if turn.spans else turn.content}
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
