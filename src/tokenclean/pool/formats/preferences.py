"""Preference rows (DPO, KTO, ORPO): refused, or read as the row that trains the chosen answer alone.

================  ====================================================================================================
keys              what ``preferences: chosen`` trains
================  ====================================================================================================
``label``         the row's answers where it is true; rows where it is false are left out (also ``kto_tag``)
``chosen``        the answer under ``chosen`` (text, message, or list of messages) to ``prompt``, ``messages``,
                  ``conversations`` or ``instruction``; earlier answers are context. A list that begins with the prompt,
                  or with the messages that it shares with ``rejected``, trains what comes after them.
``rejected…``     with ``messages`` or ``conversations`` alone (ms-swift): their last answer
================  ====================================================================================================
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from tokenclean.pool.formats.context import RowContext
from tokenclean.pool.formats.field_types import Row, RowError, holds_nothing, name_type
from tokenclean.pool.formats.unread_keys import (
    PREFERENCE,
    changes_meaning,
    chosen_label,
    meaning_of,
    preference_label,
    remedy_of,
    shown_key,
)

_CHOSEN = ("chosen", "chosen_response", "chosen_message", "chosen_messages", "preferred_output")
_REJECTED = (
    *("rejected", "rejected_response", "rejected_message", "rejected_messages", "rejected_responses"),
    "non_preferred_output",
)
_PROMPTS = ("prompt", "messages", "conversations")
_CHOSEN_NOTE = "preference row: the chosen answer trained"


def refuse_preferences(row: Row, context: RowContext) -> None:
    """Raise RowError for a row with chosen and rejected answers, whose other keys may fit no format or a wrong one."""
    for key in _suspects(tuple(row)):
        value = row[key]
        if key in context.names.ignored or preference_label(str(key), value) is not None:
            continue
        if changes_meaning(str(key), value) == PREFERENCE:
            raise RowError(f"{shown_key(key)}: {PREFERENCE}", remedy_of(shown_key(key), PREFERENCE))


@lru_cache(maxsize=256)
def _suspects(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if meaning_of(str(key)) == PREFERENCE)


def take_chosen(row: Row, context: RowContext) -> Row:
    """The row that trains what was chosen, the row itself where it states no preference.

    The keys that are dealt with are added to ``context.consumed``. Raises RowError for a rejected row
    (``is_chosen``), and for one whose chosen answer cannot be told.
    """
    ignored = context.names.ignored
    has_answers = any(isinstance(row.get(key), str | list | dict) and row[key] for key in (*_CHOSEN, *_REJECTED))
    labels = {
        key: said
        for key, value in row.items()
        if key not in ignored and not has_answers and (said := chosen_label(str(key), value)) is not None
    }
    for key, is_good in labels.items():
        context.consumed.add(key)
        if not is_good:
            raise RowError(f"{shown_key(key)}: a rejected answer", is_chosen=True)
    if has_answers:  # a label says which of the two it is, which their names say already
        context.consumed.update(key for key, value in row.items() if preference_label(str(key), value) is not None)
    if isinstance(asked := row.get("input"), dict) and isinstance(asked.get("messages"), list):  # OpenAI's form
        context.consumed.add("input")
        row = {**{key: value for key, value in row.items() if key != "input"}, **asked}
    chosen = next((key for key in _CHOSEN if not holds_nothing(row.get(key))), None)
    rejected = next((key for key in _REJECTED if not holds_nothing(row.get(key))), None)
    context.consumed.update(key for key in (*_CHOSEN, *_REJECTED) if key in row)
    if chosen is None and rejected is None:
        if labels:
            context.note("preference row: the answer that is labelled good trained")
        return row
    context.note(_CHOSEN_NOTE)
    given = {key: value for key, value in row.items() if key not in context.consumed}
    if chosen is None:
        return _last_answer(given, context)
    answer = _messages(row[chosen], chosen, context)
    if answer is None:
        return _with_text(given, row[chosen], chosen, context)
    prompt = _shared(answer, None if rejected is None else _messages(row[rejected], rejected, context))
    key = next((key for key in _PROMPTS if not holds_nothing(given.get(key))), None)
    context.consumed.update(key for key in _PROMPTS if key in given)
    rest = {name: value for name, value in given.items() if name not in _PROMPTS}
    if key is not None:
        asked = _questions(given[key], key, context)
        if asked is not None and answer[: len(asked)] != asked:
            prompt, answer = asked, [*asked, *answer]
        elif asked is not None:
            prompt = asked
        elif not prompt:
            raise RowError(f"{chosen}: messages that do not repeat the question under {key}; expected a text, or all")
    return {**rest, "prompt": prompt, "completion": answer[len(prompt) :]}


def _with_text(row: dict[str, Any], answer: object, key: str, context: RowContext) -> Row:
    """The row with the text of the answer in the place where its format has one."""
    if not isinstance(answer, str):
        raise RowError(f"{key}: expected text, a message or a list of messages, found {name_type(answer)}")
    if not holds_nothing(row.get("instruction")):
        context.consumed.add("output")
        context.history_is_context = True
        return {**row, "output": answer}
    for name in ("messages", "conversations"):
        if not holds_nothing(row.get(name)):
            context.consumed.add(name)
            asked = _questions(row.pop(name), name, context) or []
            return {**row, "prompt": asked, "completion": [{"role": "assistant", "content": answer}]}
    prompt = row.get("prompt")
    asked = _questions(prompt, "prompt", context)
    if isinstance(prompt, str) and asked is None and not holds_nothing(prompt) and answer.startswith(prompt):
        answer = answer[len(prompt) :]  # the answer repeats its prompt
    completion: object = answer if asked is None else [{"role": "assistant", "content": answer}]
    return {**row, "completion": completion}


def _last_answer(row: dict[str, Any], context: RowContext) -> Row:
    """A row whose messages hold the chosen answer as their last one."""
    for name in ("messages", "conversations"):
        messages = _messages(row.get(name), name, context)
        if messages:
            context.consumed.add(name)
            del row[name]
            return {**row, "prompt": messages[:-1], "completion": messages[-1:]}
    return row


def _questions(value: object, key: str, context: RowContext) -> list[Any] | None:
    """The messages before the answer: without an answer at their end, which is the chosen or the rejected one."""
    messages = _messages(value, key, context)
    while messages and context.names.roles.get(_role(messages[-1])) == "assistant":
        messages = messages[:-1]
    return messages


def _role(message: dict[str, Any]) -> str:
    return str(message.get("role") or message.get("from") or "").strip().lower()


def _messages(value: object, key: str, context: RowContext) -> list[Any] | None:
    """A message or a list of messages as a list; None for anything else, such as text."""
    if isinstance(value, str) and re.match(r"\s*(\[\s*)?\{\s*['\"]", value):
        value = context.decode(value, key)
    if isinstance(value, dict):
        return [value]
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _shared(chosen: list[Any], rejected: list[Any] | None) -> list[Any]:
    """The messages in front of the chosen answer: those that both lists begin with, or all but the last."""
    if rejected is None:
        return chosen[:-1]
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return chosen[:count] or chosen[:-1]
