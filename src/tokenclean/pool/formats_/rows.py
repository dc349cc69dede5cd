"""The shapes a pool's row may have, and the turns each one gives.

=====================  =====================================================  ==============
format                 keys                                                   kind
=====================  =====================================================  ==============
``messages``           ``messages``: list of ``{role, content}``              ``chat``
``alpaca``             ``instruction``, ``output`` or ``response``,           ``chat``
                       optional ``input``
``prompt_completion``  ``prompt``, ``completion``                             ``completion``
=====================  =====================================================  ==============

A key whose value is ``null`` counts as missing. Other keys are not read. Texts are kept as they stand in the row.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from tokenclean.errors import RecipeError
from tokenclean.pool.conversation import Kind, Role, Turn

Row = Mapping[str, Any]
Parsed = tuple[Kind, tuple[Turn, ...]]

ROLES: tuple[Role, ...] = get_args(Role)

# What a format needs: every group, and of a group exactly one key.
REQUIRED_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "alpaca": (("instruction",), ("output", "response")),
    "prompt_completion": (("prompt",), ("completion",)),
}


class RowError(ValueError):
    """A row cannot be used; the message names the key and becomes the reason of its RejectedRow."""


def parse_row(row: Row, format: str = "auto") -> Parsed:
    """Kind and turns of one row.

    ``format``: a name in FORMATS, or ``auto`` to go by the row's keys (``detect_format``). Every assistant turn
    returned is non-blank, and the first turn that is not a system turn is the user's.

    Raises RowError where the row is at fault and RecipeError for an unknown format.
    """
    name = detect_format(row) if format == "auto" else format
    if name not in FORMATS:
        known = ["auto", *FORMATS]
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"expected one of {', '.join(known)}, found {name!r}{hint}", source="format")
    return FORMATS[name](row)


def detect_format(row: Row) -> str:
    """The one format whose required keys are all in the row with a value other than null.

    Raises RowError where no format fits, or more than one: which of two texts is meant is never guessed.
    """
    fitting = [
        name
        for name, groups in REQUIRED_KEYS.items()
        if all(any(row.get(key) is not None for key in group) for group in groups)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RowError(f"keys fit {' and '.join(fitting)}: name the format, or remove the keys of the others")
    needs = "; ".join(f"{name} needs {_describe_keys(groups)}" for name, groups in REQUIRED_KEYS.items())
    raise RowError(f"keys fit no format: found {_describe_found(row)}; {needs}")


def check_text(value: object, where: str) -> str:
    """``value``, if it is a string that UTF-8 can hold; RowError naming ``where`` otherwise."""
    if not isinstance(value, str):
        raise RowError(f"{where}: expected text, found {_name_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: lone surrogate at character {error.start + 1}") from None
    return value


def _parse_messages(row: Row) -> Parsed:
    messages = row.get("messages")
    if messages is None:
        raise RowError("messages: missing")
    if not isinstance(messages, list):
        raise RowError(f"messages: expected a list, found {_name_type(messages)}")
    turns = tuple(_parse_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    spoken = [index for index, turn in enumerate(turns) if turn.role != "system"]
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError("messages: no assistant turn, so there is no response to train on")
    if turns[spoken[0]].role == "assistant":
        raise RowError(f"messages[{spoken[0]}].role: expected a user turn before the first assistant turn")
    return "chat", turns


def _parse_message(message: object, where: str) -> Turn:
    if not isinstance(message, dict):
        raise RowError(f"{where}: expected an object with role and content, found {_name_type(message)}")
    role = _read_text(message, "role", f"{where}.")
    if role not in ROLES:
        raise RowError(f"{where}.role: unknown role {reprlib.repr(role)}; known are {', '.join(ROLES)}")
    content = _read_text(message, "content", f"{where}.")
    # A blank system turn says the same as none; a blank question or answer says that text was lost.
    if role != "system" and not content.strip():
        raise RowError(f"{where}.content: blank {role} turn")
    return Turn(role, content)


def _parse_alpaca(row: Row) -> Parsed:
    instruction = _read_text(row, "instruction")
    context = "" if row.get("input") is None else _read_text(row, "input")
    if not instruction.strip() and not context.strip():
        raise RowError("instruction: blank, and there is no input either")
    given = [key for key in ("output", "response") if row.get(key) is not None]
    if not given:
        raise RowError("output: missing, and so is response; expected one of them")
    if len(given) == 2:
        raise RowError("output: given, and so is response; expected one of them")
    response = _read_response(row, given[0])
    question = "\n".join(text for text in (instruction, context) if text.strip())
    return "chat", (Turn("user", question), Turn("assistant", response))


def _parse_prompt_completion(row: Row) -> Parsed:
    # A blank prompt is plain text to continue from nothing, which is a sample; a blank completion is none.
    prompt = _read_text(row, "prompt")
    return "completion", (Turn("user", prompt), Turn("assistant", _read_response(row, "completion")))


FORMATS: dict[str, Callable[[Row], Parsed]] = {
    "messages": _parse_messages,
    "alpaca": _parse_alpaca,
    "prompt_completion": _parse_prompt_completion,
}


def _read_text(row: Row, key: str, prefix: str = "") -> str:
    if row.get(key) is None:
        raise RowError(f"{prefix}{key}: missing")
    return check_text(row[key], f"{prefix}{key}")


def _read_response(row: Row, key: str) -> str:
    response = _read_text(row, key)
    if not response.strip():
        raise RowError(f"{key}: blank response")
    return response


def _name_type(value: object) -> str:
    """The type in JSON's words."""
    names = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _describe_keys(groups: tuple[tuple[str, ...], ...]) -> str:
    return " and ".join(" or ".join(group) for group in groups)


def _describe_found(row: Row, most: int = 10) -> str:
    """The row's keys, shortened and escaped, since a row at fault may hold anything."""
    if not row:
        return "no key"
    keys = [reprlib.repr(key) + (" (null)" if value is None else "") for key, value in list(row.items())[:most]]
    more = f" and {len(row) - most} more" if len(row) > most else ""
    return ", ".join(keys) + more
