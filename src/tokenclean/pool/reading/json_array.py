"""Elements of a JSON array, broken ones too."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

from tokenclean.pool.reading.json_values import is_message, name_messages, parse_value, skip_space
from tokenclean.pool.reading.text_lines import TextLines

NOT_CLOSED = "the array has no closing ]: is the file cut off?"
NO_COMMA = "expected , or ] after the previous element"
TEXT_BEHIND = "expected nothing after the closing ] of the array"

# Where reading continues after a broken element, by what that element starts with.
_NEXT_OBJECT = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")
_LIST_OF_LISTS = re.compile(r"\[[ \t\n\r]*\[")
_NEXT_LIST = re.compile(r"\][ \t\n\r]*,[ \t\n\r]*(?=\[)")


class Found(NamedTuple):
    """A value that may be a row, where it starts in the text, and what is wrong with it.

    ``wrapper_keys``: see ``Record``.
    """

    start: int
    value: object
    fault: str = ""
    wrapper_keys: tuple[str, ...] = ()


def walk_array(text: str, source: TextLines) -> Iterator[Found]:
    """The elements of the array that fills a text, and a fault wherever the text between or after them is wrong.

    An array whose elements are all messages is one conversation, and is given as the row that holds it.
    """
    start = skip_space(text, 0)
    parts = _walk_parts(text, start, source)
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


def walk_elements(text: str, at: int, source: TextLines, *, may_close: bool = True) -> Generator[Found, None, int]:
    """The elements from ``at``, directly after a ``[``; after a broken one, reading continues at the next ``}, {``.

    Returns the position after the closing ``]``, or the end of the text. ``may_close``: whether the ``]`` may be next.
    """
    at = skip_space(text, at)
    expects_element = not (may_close and text.startswith("]", at))
    while True:
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
            return at + 1
        else:
            fault, end = NOT_CLOSED if at == len(text) else NO_COMMA, at
        next_element = _NEXT_LIST if text.startswith("[", at) else _NEXT_OBJECT
        found, at = _explain(text, at, next_element.search(text, end), fault, source)
        yield found
        if at == len(text):
            return at
        expects_element = True


def _walk_parts(text: str, start: int, source: TextLines) -> Iterator[Found]:
    at, may_close = start + 1, True
    while (at := skip_space(text, (yield from walk_elements(text, at, source, may_close=may_close)))) < len(text):
        next_element = _NEXT_LIST if _LIST_OF_LISTS.match(text, at) else _NEXT_OBJECT
        found, at = _explain(text, at, next_element.search(text, at), TEXT_BEHIND, source)
        yield found
        if at == len(text):
            return
        may_close = False


def _explain(text: str, at: int, match: re.Match[str] | None, fault: str, source: TextLines) -> tuple[Found, int]:
    """The fault at a position, and where the next element starts: the end of ``match``, or of the text without one."""
    fault = source.describe_bad_byte(text, "element", at, match.start() if match else None) or fault
    if match is None and fault != NOT_CLOSED and not text.rstrip().endswith(("]", "}")):
        fault = f"{fault}; {NOT_CLOSED}"
    return Found(at, None, fault), match.end() if match else len(text)
