"""Preference rows (DPO, KTO, ORPO): refused, or turned into the row that trains the chosen answer alone.

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
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

from tokenclean.pool.formats.field_types import Row, RowError, holds_nothing, name_type
from tokenclean.pool.formats.row_options import RowContext
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
_CHATS = ("messages", "conversations")
_PROMPTS = ("prompt", *_CHATS)
_Messages = list[dict[str, object]]


def refuse_preferences(row: Row, context: RowContext) -> None:
    """Raise RowError for a row with chosen and rejected answers, whose other keys may fit no format or a wrong one."""
    for key in _suspects(tuple(row)):
        value = row[key]
        if key in context.options.ignored or preference_label(str(key), value) is not None:
            continue
        if changes_meaning(str(key), value) == PREFERENCE:
            raise RowError(f"{shown_key(key)}: {PREFERENCE}", remedy_of(shown_key(key), PREFERENCE))


@lru_cache(maxsize=256)
def _suspects(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if meaning_of(str(key)) == PREFERENCE)


def take_chosen(row: Row, context: RowContext) -> Row:
    """The row that trains what was chosen, the row itself where it states no preference.

    The keys handled here are added to ``context.consumed``. Raises RowError for a rejected row (``is_chosen``), and for
    one whose chosen answer cannot be found.
    """
    ignored = context.options.ignored
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
    if has_answers:  # a label repeats what the names of the answers say
        context.consumed.update(key for key, value in row.items() if preference_label(str(key), value) is not None)
    if isinstance(asked := row.get("input"), dict) and isinstance(asked.get("messages"), list):  # OpenAI's form
        context.consumed.add("input")
        row = {**{key: value for key, value in row.items() if key != "input"}, **asked}
    chosen, rejected = _first_given(row, _CHOSEN), _first_given(row, _REJECTED)
    context.consumed.update(key for key in (*_CHOSEN, *_REJECTED) if key in row)
    if chosen is None and rejected is None:
        if labels:
            context.note("preference row: the answer that is labelled good trained")
        return row
    context.note("preference row: the chosen answer trained")
    given = {key: value for key, value in row.items() if key not in context.consumed}
    if chosen is None:
        return _last_answer(given, context)
    answer = _messages(row[chosen], chosen, context)
    if answer is None:
        return _with_text(given, row[chosen], chosen, context)
    prompt = _shared(answer, None if rejected is None else _messages(row[rejected], rejected, context))
    key = _first_given(given, _PROMPTS)
    asked = None if key is None else _questions(given[key], key, context)
    if asked is not None:
        prompt, answer = asked, answer if answer[: len(asked)] == asked else [*asked, *answer]
    elif key is not None and not prompt:
        raise RowError(f"{chosen}: messages that do not repeat the question under {key}; expected a text, or all")
    context.consumed.update(key for key in _PROMPTS if key in given)
    rest = {name: value for name, value in given.items() if name not in _PROMPTS}
    return {**rest, "prompt": prompt, "completion": answer[len(prompt) :]}


def _first_given(row: Row, keys: Iterable[str]) -> str | None:
    return next((key for key in keys if not holds_nothing(row.get(key))), None)


def _with_text(row: dict[str, object], answer: object, key: str, context: RowContext) -> Row:
    """The row with the text of the answer where its format has one."""
    if not isinstance(answer, str):
        raise RowError(f"{key}: expected text, a message or a list of messages, found {name_type(answer)}")
    if not holds_nothing(row.get("instruction")):
        context.consumed.add("output")
        context.history_is_context = True
        return {**row, "output": answer}
    if name := _first_given(row, _CHATS):
        context.consumed.add(name)
        asked = _questions(row.pop(name), name, context) or []
        return {**row, "prompt": asked, "completion": [{"role": "assistant", "content": answer}]}
    prompt = row.get("prompt")
    if _questions(prompt, "prompt", context) is not None:
        return {**row, "completion": [{"role": "assistant", "content": answer}]}
    if isinstance(prompt, str) and not holds_nothing(prompt):
        answer = answer.removeprefix(prompt)  # the answer may repeat its prompt
    return {**row, "completion": answer}


def _last_answer(row: dict[str, object], context: RowContext) -> Row:
    """A row whose messages end with the chosen answer."""
    for name in _CHATS:
        messages = _messages(row.get(name), name, context)
        if messages:
            context.consumed.add(name)
            del row[name]
            return {**row, "prompt": messages[:-1], "completion": messages[-1:]}
    return row


def _questions(value: object, key: str, context: RowContext) -> _Messages | None:
    """The messages before the answer: without an answer at their end, which is the chosen or the rejected one."""
    messages = _messages(value, key, context)
    while messages and context.options.role_of.get(_role(messages[-1])) == "assistant":
        messages = messages[:-1]
    return messages


def _role(message: Row) -> str:
    return str(message.get("role") or message.get("from") or "").strip().lower()


def _messages(value: object, key: str, context: RowContext) -> _Messages | None:
    """A message or a list of messages as a list; None for anything else, such as text."""
    if isinstance(value, str) and re.match(r"\s*(\[\s*)?\{\s*['\"]", value):
        value = context.decode(value, key)
    if isinstance(value, dict):
        return [value]
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _shared(chosen: _Messages, rejected: _Messages | None) -> _Messages:
    """The messages before the chosen answer: those that both lists begin with, or all but the last."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:-1], (rejected or [])[:-1], strict=False))
    return [message for message, _ in shared] or chosen[:-1]
