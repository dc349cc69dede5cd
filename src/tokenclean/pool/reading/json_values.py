"""JSON values: parsed one at a time out of a long text, taken as rows, or walked as the elements of an array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from tokenclean.pool.reading.text_files import TextLines

NOT_A_ROW = "expected a JSON object or a list of messages"
TOO_DEEP = "broken JSON: nested too deeply"
TOO_LONG_A_NUMBER = "broken JSON: a number has more digits than can be read"

NOT_CLOSED = "the array has no closing ]: is the file cut off?"
NO_COMMA = "expected , or ] after the previous element"
TEXT_BEHIND = "expected nothing after the closing ] of the array"

# NaN and infinity are not JSON. Both mean a missing number.
DECODER = json.JSONDecoder(parse_constant=lambda _: None)

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.\deE]*")
# A text without its closing quote is one token up to the end: looking for others in it would take quadratic time.
_BRACKET_OR_TEXT = re.compile(r'[\[\]{}]|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)

# A value is parsed within a window of the text that grows until it holds it. Python's JSONDecodeError counts the
# lines before the error, so parsing in place would take quadratic time over many broken values.
_WINDOW_CHARACTERS = 1 << 12
_WINDOW_GROWTH = 8
_LOOKAHEAD_CHARACTERS = 16  # more than the longest literal or escape, which the end of a window may cut

# Where reading continues after a broken element, by what that element starts with.
_NEXT_OBJECT = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")
_LIST_OF_LISTS = re.compile(r"\[[ \t\n\r]*\[")
_NEXT_LIST = re.compile(r"\][ \t\n\r]*,[ \t\n\r]*(?=\[)")


class ParsedValue(NamedTuple):
    """The value at a position or its fault, and its end, or where it breaks if it is not complete."""

    value: object
    fault: str
    end: int
    is_complete: bool


class Found(NamedTuple):
    """A value that may be a row, where it starts in the text, and what is wrong with it.

    ``wrapper_keys``: see ``Record``.
    """

    start: int
    value: object
    fault: str = ""
    wrapper_keys: tuple[str, ...] = ()


def parse_line(text: str) -> tuple[object, str]:
    """The value that fills a line, and what is wrong with it, which is empty if nothing is."""
    try:
        return DECODER.decode(text), ""
    except json.JSONDecodeError as error:
        if text.startswith("\ufeff"):
            return None, "broken JSON: a byte order mark at the start of the line"
        return None, f"broken JSON: {error.msg} (character {error.pos + 1} of the line)"
    except RecursionError:
        return None, TOO_DEEP
    except ValueError:  # an integer of more digits than Python converts
        return None, TOO_LONG_A_NUMBER


def parse_value(text: str, at: int, place: str = "element") -> ParsedValue:
    """The value that starts at a position. ``place``: what a fault counts characters in."""
    width = _WINDOW_CHARACTERS
    while True:
        window = text[at : at + width]
        try:
            value, end = DECODER.raw_decode(window)
            fault, reached, is_complete = "", end, True
        except json.JSONDecodeError as error:
            value, end, is_complete = None, error.pos, False
            fault = f"broken JSON: {error.msg} (character {error.pos + 1} of the {place})"
            reached = len(window) if error.msg.startswith("Unterminated") else error.pos
        except RecursionError:
            return ParsedValue(None, TOO_DEEP, *_find_end(text, at))
        except ValueError:  # an integer of more digits than Python converts
            return ParsedValue(None, TOO_LONG_A_NUMBER, *_find_end(text, at))
        if reached + _LOOKAHEAD_CHARACTERS < len(window) or at + width >= len(text):
            return ParsedValue(value, fault, at + end, is_complete)
        width *= _WINDOW_GROWTH


def skip_space(text: str, at: int) -> int:
    """The next position whose character is not blank, or the end of the text."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def take_row(value: object, fault: str = "") -> tuple[dict[str, object] | None, str]:
    """A value as a row (an object, or the messages of one conversation), or its fault: the one given, or that it is
    none."""
    if fault:
        return None, fault
    if isinstance(value, dict):
        return value, ""
    if key := name_messages(value):
        return {key: value}, ""
    kinds = {type(None): "null", bool: "true or false", str: "a text", list: "another list"}
    return None, f"{NOT_A_ROW}, found {kinds.get(type(value), 'a number')}"


def name_messages(value: object) -> str:
    """The key under which a row holds this list of messages; empty if it is no such list."""
    if not isinstance(value, list) or not value:
        return ""
    if all(map(_has_role, value)):
        return "messages"
    return "conversations" if all(map(_has_sender, value)) else ""


def is_message(value: object) -> bool:
    """Whether a value is a message of a conversation, in either of the two common forms."""
    return _has_role(value) or _has_sender(value)


def walk_array(text: str, source: TextLines) -> Iterator[Found]:
    """The elements of the array that fills a text, and a fault wherever the text between or after them is wrong.

    An array whose elements are all messages is one conversation, and is given as the row that holds it.
    """
    start = skip_space(text, 0)
    parts = walk_elements(text, start + 1, source, fills_text=True)
    held: list[Found] = []
    for found in parts:
        held.append(found)
        if found.fault or not is_message(found.value):
            yield from held
            yield from parts
            return
    messages = [found.value for found in held]
    key = name_messages(messages)
    yield from [Found(start, {key: messages})] if key else held


def walk_elements(text: str, at: int, source: TextLines, *, fills_text: bool = False) -> Iterator[Found]:
    """The elements from ``at``, directly after a ``[``; after a broken one, reading continues at the next ``}, {``.

    They end at the closing ``]``; with ``fills_text`` anything but space after it is a fault, at which reading goes on.
    """
    at = skip_space(text, at)
    expects_element = not text.startswith("]", at)
    while True:
        is_list = text.startswith("[", at)
        if expects_element:
            value, fault, end, is_complete = parse_value(text, at)
            if is_complete:
                fault = source.describe_bad_byte(text, "element", at, end) or fault
                yield Found(at, None if fault else value, fault)
                at, expects_element = skip_space(text, end), False
                continue
        elif text.startswith(",", at):
            at, expects_element = skip_space(text, at + 1), True
            continue
        elif text.startswith("]", at):
            at = end = skip_space(text, at + 1)
            if at == len(text) or not fills_text:
                return
            fault, is_list = TEXT_BEHIND, bool(_LIST_OF_LISTS.match(text, at))
        else:
            fault, end = NOT_CLOSED if at == len(text) else NO_COMMA, at
        following = (_NEXT_LIST if is_list else _NEXT_OBJECT).search(text, end)
        fault = source.describe_bad_byte(text, "element", at, following.start() if following else None) or fault
        if following is None and fault != NOT_CLOSED and not text.rstrip().endswith(("]", "}")):
            fault = f"{fault}; {NOT_CLOSED}"
        yield Found(at, None, fault)
        if following is None:
            return
        at, expects_element = following.end(), True


def _has_role(value: object) -> bool:
    return isinstance(value, dict) and "role" in value and ("content" in value or "tool_calls" in value)


def _has_sender(value: object) -> bool:
    return isinstance(value, dict) and "from" in value and "value" in value


def _find_end(text: str, at: int) -> tuple[int, bool]:
    """The end of a value that the decoder will not read, by its brackets, and whether they close."""
    if text[at] not in "{[":
        number = _NUMBER.match(text, at)
        return (number.end() if number else at), True
    depth = 0
    for token in _BRACKET_OR_TEXT.finditer(text, at):
        bracket = text[token.start()]
        depth += (bracket in "[{") - (bracket in "]}")
        if depth == 0:
            return token.end(), True
    return len(text), False
