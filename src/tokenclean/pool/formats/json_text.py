"""A conversation as a row: what ``parse_row`` reads back as the same conversation."""

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


def _write_tokens(tokens: LabelledTokens) -> dict[str, Any]:
    ids, labels = tokens.input_ids.tolist(), tokens.is_response.tolist()
    written: dict[str, Any] = {
        "input_ids": ids,
        "labels": [id if is_response else UNTRAINED for id, is_response in zip(ids, labels, strict=True)],
    }
    return written | ({} if tokens.weight is None else {"token_weight": tokens.weight.tolist()})


def _write_turn(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            | ({"id": call.id} if call.id else {})
            for call in turn.tool_calls
        ]
    if turn.spans:
        message["content"] = _write_parts(turn)
    message |= _write_weight(turn)
    if not turn.is_trained:
        message["train"] = False
    if turn.name:
        message["name"] = turn.name
    if turn.call_id:
        message["tool_call_id"] = turn.call_id
    return message


def _write_weight(turn: Turn) -> dict[str, Any]:
    """The turn's loss weight, where it is not 1."""
    return {"weight": turn.weight} if turn.weight != 1 else {}


def _write_parts(turn: Turn) -> list[dict[str, Any]]:
    """The content in parts, those of a weight of their own with it."""
    parts: list[dict[str, Any]] = []
    done = 0
    for start, end, weight in turn.spans:
        parts.append({"type": "text", "text": turn.content[done:start]})
        parts.append({"type": "text", "text": turn.content[start:end], "weight": weight})
        done = end
    parts.append({"type": "text", "text": turn.content[done:]})
    return [part for part in parts if part["text"]]
