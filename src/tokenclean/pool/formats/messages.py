"""Turns from a list of chat messages.

A message is ``{role, content}`` or, as ShareGPT writes it, ``{from, value}``. ``content`` is text or a list of parts
``{type: text, text}``, joined as they stand; a part of another type makes the row unusable, and no path or address
in a row is ever opened. A key whose value is ``null`` counts as missing; keys not named here are not read.

An assistant's message may further hold

- ``tool_calls`` (or OpenAI's older ``function_call``): what it calls; ``content`` may then be missing or blank;
- ``reasoning_content`` (or ``reasoning``, or ``thinking``): its reasoning;
- ``train``, ``training`` or ``loss`` (true or false) or ``weight`` (1 or 0): whether the turn is trained.

A tool's message may name the tool (``name``) and the call it answers (``tool_call_id``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenclean.pool.conversation import Role, ToolCall, Turn
from tokenclean.pool.formats.columns import MISSING, find_column
from tokenclean.pool.formats.fields import (
    Row,
    RowError,
    check_object,
    describe_keys,
    name_type,
    quote,
    read_optional_text,
    read_text,
)
from tokenclean.pool.formats.tool_calls import parse_function_call, read_tool_calls

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
}

_SPELLINGS = (("role", "content"), ("from", "value"))
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FLAGS = ("train", "training", "loss", "weight")


@dataclass(frozen=True)
class MessageNames:
    """The names a pool uses inside its messages. ``roles``: role name -> role. ``columns``: our key -> the message's
    key, for those that have another name."""

    roles: Mapping[str, Role] = field(default_factory=lambda: ROLE_NAMES)
    columns: Mapping[str, str] = field(default_factory=dict)


def parse_messages(messages: Sequence[Any], key: str, names: MessageNames) -> tuple[Turn, ...]:
    """One turn a message. ``key``: where the list stands in the row. Raises RowError.

    A blank system or tool turn is allowed, a blank user turn is not, nor is a blank assistant turn that calls no tool.
    """
    return tuple(_parse_message(message, f"{key}[{index}]", names) for index, message in enumerate(messages))


def check_turns(turns: Sequence[Turn], key: str, place: Callable[[int], str] | None = None) -> None:
    """RowError unless an assistant turn is left to train, a user speaks first (system turns aside), and tools speak
    after an assistant. ``place``: where turn i stands in the row, by default ``key[i]``."""
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError(f"{key}: no assistant turn, so there is no response to train on")
    if not any(turn.role == "assistant" and turn.is_trained for turn in turns):
        raise RowError(f"{key}: every assistant turn is marked as not trained, so there is no response to train on")
    spoken = next(index for index, turn in enumerate(turns) if turn.role != "system")
    if turns[spoken].role != "user":
        where = place(spoken) if place else f"{key}[{spoken}]"
        raise RowError(f"{where}: expected a user turn before the first {turns[spoken].role} turn")
    roles = [turn.role for turn in turns]
    if "tool" in roles and roles.index("tool") < roles.index("assistant"):
        index = roles.index("tool")
        where = place(index) if place else f"{key}[{index}]"
        raise RowError(f"{where}: expected an assistant turn before the first tool turn")


def _parse_message(message: object, where: str, names: MessageNames) -> Turn:
    row = check_object(message, where)
    if names.columns:
        row = _rename_keys(row, where, names.columns)
    role_key, content_key = _find_spelling(row, where)
    role_name = read_text(row, role_key, f"{where}.")
    role = names.roles.get(role_name)
    if role is None:
        known = ", ".join(names.roles)
        raise RowError(f"{where}.{role_key}: unknown role {quote(role_name)}; known are {known}; map others with roles")
    is_trained = _read_flag(row, where)
    if role == "assistant":
        return _parse_assistant(row, role_name, content_key, where, is_trained is not False)
    if is_trained:
        raise RowError(f"{where}: marked as trained; only an assistant's turn can be (tokens.targets: all trains all)")
    _check_only_speaks(row, role, where)
    content = _read_content(row, content_key, where)
    if role == "tool":
        name, call_id = (read_optional_text(row, key, f"{where}.") for key in ("name", "tool_call_id"))
        return Turn(role, content, name=name, call_id=call_id)
    # A blank system turn says the same as none, and a tool may return nothing; a blank question has lost its text.
    if role == "user" and not content.strip():
        raise RowError(f"{where}.{content_key}: blank user turn")
    return Turn(role, content)


def _parse_assistant(row: Row, role_name: str, content_key: str, where: str, is_trained: bool) -> Turn:
    calls: tuple[ToolCall, ...] = () if row.get("tool_calls") is None else read_tool_calls(row, where)
    if row.get("function_call") is not None:
        if calls:
            raise RowError(f"{where}.function_call: given, and so is tool_calls; expected one of them")
        calls = parse_function_call(row["function_call"], f"{where}.function_call")
    if role_name == "function_call":
        if calls:
            raise RowError(f"{where}.tool_calls: given, and the content of a function_call turn is a call too")
        calls, content = parse_function_call(row.get(content_key), f"{where}.{content_key}"), ""
    elif calls and row.get(content_key) is None:
        content = ""
    else:
        content = _read_content(row, content_key, where)
    if not calls and not content.strip():
        raise RowError(f"{where}.{content_key}: blank response")
    return Turn("assistant", content, _read_reasoning(row, where), calls, is_trained)


def _find_spelling(row: Row, where: str) -> tuple[str, str]:
    """The keys of the role and the content in this message."""
    if row.get("from") is None:
        if row.get("role") is None:
            raise RowError(f"{where}.role: missing, and so is from; found {describe_keys(row)}")
        return "role", "content"
    if row.get("role") is not None:
        raise RowError(f"{where}.role: given, and so is from; expected one of them")
    return "from", "value"


def _read_content(row: Row, key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, list):
        return read_text(row, key, f"{where}.")
    return "".join(_read_part(part, f"{where}.{key}[{index}]") for index, part in enumerate(value))


def _read_part(part: object, where: str) -> str:
    part = check_object(part, where)
    kind = part.get("type")
    if not (isinstance(kind, str) and kind == "text"):
        raise RowError(f"{where}: expected a part of type 'text', found {quote(kind)}; only text is read")
    return read_text(part, "text", f"{where}.")


def _read_reasoning(row: Row, where: str) -> str:
    given = [key for key in _REASONING if row.get(key) is not None]
    texts = {key: text for key in given if (text := read_text(row, key, f"{where}.")).strip()}
    if len(set(texts.values())) > 1:
        raise RowError(f"{where}: {' and '.join(texts)} differ; expected one of them")
    return next(iter(texts.values()), "")


def _read_flag(row: Row, where: str) -> bool | None:
    """Whether the message says that it is trained; None where it does not say."""
    flags: dict[str, bool] = {}
    for key in _FLAGS:
        value = row.get(key)
        if value is None:
            continue
        # JSON's true is no weight, though Python has True == 1.
        is_flag = type(value) in (int, float) and value in (0, 1) if key == "weight" else isinstance(value, bool)
        if not is_flag:
            expected = "0 or 1" if key == "weight" else "true or false"
            raise RowError(f"{where}.{key}: expected {expected}, found {quote(value)}")
        flags[key] = bool(value)
    if len(set(flags.values())) > 1:
        raise RowError(f"{where}: {' and '.join(flags)} disagree on whether the turn is trained")
    return next(iter(flags.values()), None)


def _check_only_speaks(row: Row, role: Role, where: str) -> None:
    """RowError where a turn that is not the assistant's has what only an assistant's has."""
    for key in ("tool_calls", "function_call", *_REASONING):
        value = row.get(key)
        is_blank = (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)
        if value is not None and not is_blank:
            raise RowError(f"{where}.{key}: found {name_type(value)} in a {role} turn; only an assistant's turn has it")


def _rename_keys(message: Row, where: str, columns: Mapping[str, str]) -> Row:
    """The message under our keys. Keys that are not mapped are read as they are, save the other spelling's."""
    spelling: tuple[str, ...] = next((pair for pair in _SPELLINGS if not columns.keys().isdisjoint(pair)), ())
    unread = {*columns, *columns.values()}
    if spelling:
        unread.update(key for pair in _SPELLINGS if pair != spelling for key in pair)
    renamed = {key: value for key, value in message.items() if key not in unread}
    found = {key: find_column(message, column) for key, column in columns.items()}
    renamed.update((key, value) for key, value in found.items() if value is not MISSING)
    for key in spelling:
        may_lack = key in ("content", "value") and renamed.get("tool_calls") is not None
        if found.get(key) is MISSING and not may_lack:
            raise RowError(f"{where}.{key}: no column {quote(columns[key])}; found {describe_keys(message)}")
    return renamed
