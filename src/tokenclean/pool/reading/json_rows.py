"""Rows of JSON text: one object a line, or the elements of one array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tokenclean.pool.reading.files import read_lines
from tokenclean.pool.reading.record import EXCERPT_CHARACTERS, Record

NOT_AN_OBJECT = "expected a JSON object, found another JSON value"
TOO_DEEP = "broken JSON: nested too deeply"
NOT_CLOSED = "the array has no closing ]: is the file cut off?"
NO_COMMA = "expected , or ] behind the element before"
TEXT_BEHIND = "expected nothing behind the closing ] of the array"

_DECODER = json.JSONDecoder()

_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT_OBJECT = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")
_NUMBER = re.compile(r"[-+.\deE]*")
# A text without its closing quote is one token up to the end: looking for others in it would take quadratic time.
_BRACKET_OR_TEXT = re.compile(r'[\[\]{}]|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")

# An element is parsed within a window of the text that grows until it holds it. Python's JSONDecodeError counts the
# lines before the error, so parsing in place would take quadratic time over many broken elements.
_WINDOW_CHARACTERS = 1 << 12
_WINDOW_GROWTH = 8
_LOOKAHEAD_CHARACTERS = 16  # more than the longest literal or escape, which the end of a window may cut


def read_json(path: Path) -> Iterator[Record]:
    """The rows of a JSON lines file or, where the first character that is not blank is ``[``, of a JSON array.

    A line or element that is not UTF-8, not JSON or not an object is a record with a fault. Lines are streamed; an
    array is read whole. Raises PoolError as ``read_lines`` does.
    """
    lines = read_lines(path)
    head: list[bytes] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    if head and head[-1].lstrip().startswith(b"["):
        yield from _read_array(b"".join(chain(head, lines)))
    else:
        yield from _read_object_lines(chain(head, lines))


def describe_bad_byte(error: UnicodeDecodeError, place: str) -> str:
    """The fault of a row that is not UTF-8; ``place`` is what its bytes are counted in."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the {place}"


def _read_object_lines(lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        content = line.rstrip(b"\r\n")
        if not content.strip():
            continue
        row, fault = _parse_line(content)
        yield Record(number, number, row, fault, content)


def _parse_line(content: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        row = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, describe_bad_byte(error, "line")
    except json.JSONDecodeError as error:
        return None, f"broken JSON at character {error.pos + 1}: {error.msg}"
    except RecursionError:
        return None, TOO_DEEP
    except ValueError as error:  # a number of more digits than Python converts
        return None, f"broken JSON: {error}"
    return (row, "") if isinstance(row, dict) else (None, NOT_AN_OBJECT)


def _read_array(content: bytes) -> Iterator[Record]:
    """One record an element, and one wherever the text between the elements or behind the array is wrong."""
    # A bad byte becomes a lone surrogate, so that it spoils its own element only.
    text = content.decode("utf-8", "surrogateescape")
    line, counted = 1, 0
    for number, (start, row, fault) in enumerate(_walk_array(text), start=1):
        line += text.count("\n", counted, start)
        counted = start
        yield Record(number, line, row, fault, text[start : start + EXCERPT_CHARACTERS])


def _walk_array(text: str) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Start, row and fault of each element; after a broken one, go on at the next ``}, {``."""
    at = _skip_space(text, text.index("[") + 1)
    expects_element = not text.startswith("]", at)
    while True:
        if expects_element:
            row, fault, end, is_complete = _parse_element(text, at)
            if is_complete:
                yield at, row, fault
                at, expects_element = _skip_space(text, end), False
                continue
        elif text.startswith(",", at):
            at, expects_element = _skip_space(text, at + 1), True
            continue
        elif text.startswith("]", at):
            if _skip_space(text, at + 1) == len(text):
                return
            fault, end = TEXT_BEHIND, at
        else:
            fault, end = NOT_CLOSED if at == len(text) else NO_COMMA, at
        found = _NEXT_OBJECT.search(text, end)
        fault = _describe_escaped_byte(text, at, found.start() if found else len(text)) or fault
        if found is None:
            is_cut_off = fault != NOT_CLOSED and not text.rstrip().endswith("]")
            yield at, None, f"{fault}; {NOT_CLOSED}" if is_cut_off else fault
            return
        yield at, None, fault
        at, expects_element = found.end(), True


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class _Element(NamedTuple):
    """What stands at a position: a row or a fault, its end, or where it breaks if it is not complete."""

    row: dict[str, Any] | None
    fault: str
    end: int
    is_complete: bool


def _parse_element(text: str, at: int) -> _Element:
    width = _WINDOW_CHARACTERS
    while True:
        window = text[at : at + width]
        try:
            row, end = _DECODER.raw_decode(window)
            fault, reached, is_complete = "" if isinstance(row, dict) else NOT_AN_OBJECT, end, True
        except json.JSONDecodeError as error:
            row, end, is_complete = None, error.pos, False
            fault = f"broken JSON at character {error.pos + 1}: {error.msg}"
            reached = len(window) if error.msg.startswith("Unterminated") else error.pos
        except RecursionError:
            return _Element(None, TOO_DEEP, *_find_end(text, at))
        except ValueError as error:  # a number of more digits than Python converts
            return _Element(None, f"broken JSON: {error}", *_find_end(text, at))
        if reached + _LOOKAHEAD_CHARACTERS < len(window) or at + width >= len(text):
            break
        width *= _WINDOW_GROWTH
    fault = _describe_escaped_byte(text, at, at + end) or fault
    return _Element(None if fault else row, fault, at + end, is_complete)


def _find_end(text: str, at: int) -> tuple[int, bool]:
    """The end of an element that the decoder will not read, by its brackets, and whether they close."""
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


def _describe_escaped_byte(text: str, start: int, end: int) -> str:
    bad = _ESCAPED_BYTE.search(text, start, end)
    if bad is None:
        return ""
    return f"not UTF-8: byte 0x{ord(bad[0]) - 0xDC00:02x} at character {bad.start() - start + 1} of the element"
