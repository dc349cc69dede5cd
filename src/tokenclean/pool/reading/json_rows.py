"""Rows of JSON text: one value a line, the elements of one array, or objects over several lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from tokenclean.errors import PoolError
from tokenclean.pool.reading.files import refuse_split, split_name
from tokenclean.pool.reading.json_array import Found, walk_array
from tokenclean.pool.reading.json_objects import walk_objects, wraps_rows
from tokenclean.pool.reading.json_values import name_messages, parse_line, take_row
from tokenclean.pool.reading.record import EXCERPT_CHARACTERS, Record
from tokenclean.pool.reading.text_lines import TextLines

_SHOWN_LINES = 3  # as many as show the shape
_LINE_SUFFIXES = (".jsonl", ".ndjson")

Shape = Literal["lines", "array", "objects"]


def read_json(path: Path, *, split: str | None = None, encoding: str | None = None) -> Iterator[Record]:
    """The rows of JSON text in any of these shapes, recognized by the first lines that are not blank:

    - JSON lines, each an object or the list of one conversation's messages;
    - an array of such objects or lists, or of the messages of one conversation;
    - objects that follow one another, each over several lines;
    - one object that wraps a list of rows; ``split`` is the key of the list where it has several. By its name, a
      .jsonl file of one line holds one row, even if that row has lists, unless there is a ``split``.

    A list of messages is the row ``{"messages": [...]}``, or ``{"conversations": [...]}`` if they have ``from`` and
    ``value``. NaN and infinity are read as None. A value that cannot be decoded, is not JSON or is no row is a record
    with a fault. Lines are streamed; any other shape is read whole. Raises PoolError as ``TextLines`` does, and for a
    split that the file does not have.
    """
    source = TextLines(path, encoding)
    lines, filled = _look_ahead(iter(source))
    texts = [line.decode("utf-8", "surrogateescape").rstrip() for line in filled]
    shape = _find_shape(texts, may_wrap=split is not None or split_name(path)[0] not in _LINE_SUFFIXES)
    if shape == "lines":
        refuse_split(path, split)
        yield from _read_lines(lines, source)
        return
    # A bad byte becomes a lone surrogate, so that it spoils its own row only.
    text = b"".join(lines).decode("utf-8", "surrogateescape")
    if shape == "array":
        refuse_split(path, split)
        yield from _place_rows(text, walk_array(text, source))
    else:
        yield from _place_rows(text, walk_objects(text, source, split))


def _look_ahead(lines: Iterator[bytes]) -> tuple[Iterator[bytes], list[bytes]]:
    """All the lines, and the first few that are not blank. An error while looking is raised in its place among them."""
    head: list[bytes] = []
    filled: list[bytes] = []
    try:
        for line in lines:
            head.append(line)
            if line.strip():
                filled.append(line)
                if len(filled) == _SHOWN_LINES:
                    break
    except PoolError as error:
        lines = _fail(error)
    return chain(head, lines), filled


def _fail(error: PoolError) -> Iterator[bytes]:
    raise error
    yield  # makes this an iterator, which fails when it is asked for a line


def _find_shape(filled: list[str], may_wrap: bool) -> Shape:
    """``may_wrap``: whether a file of one line may be an object that wraps the rows."""
    if not filled:
        return "lines"
    first, second, third = (*filled, "", "")[:3]
    if first.lstrip().startswith("["):
        return "lines" if _are_lists(first, second) else "array"
    if not second:
        return "objects" if may_wrap and first.lstrip().startswith("{") and wraps_rows(first) else "lines"
    if not parse_line(first)[1]:
        return "lines"
    # The first line is broken, or goes on with the second.
    if isinstance(parse_line(second)[0], dict | list):
        return "objects" if first.endswith("[") and third.startswith("]") else "lines"
    if second.startswith("{"):
        return "objects" if first.endswith("[") else "lines"
    return "objects" if first.startswith("{") or second[0] in " \t" else "lines"


def _are_lists(first: str, second: str) -> bool:
    """Whether two lines, of which the first starts with [, are JSON lines rather than the start of one array."""
    if name_messages(parse_line(first)[0]):
        return second.startswith(("[", "{"))
    # The first line may be a broken one, but none that the second one continues.
    return bool(name_messages(parse_line(second)[0])) and not first.endswith((",", "["))


def _read_lines(lines: Iterable[bytes], source: TextLines) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        content = line.rstrip(b"\r\n")
        if not content.strip():
            continue
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("utf-8", "surrogateescape")
            yield Record(number, number, None, source.describe_bad_byte(text, "line"), content)
            continue
        row, fault = take_row(*parse_line(text))
        yield Record(number, number, row, fault, content)


def _place_rows(text: str, values: Iterable[Found]) -> Iterator[Record]:
    """Records of the values, with the lines on which they start."""
    line, counted = 1, 0
    for number, (start, value, fault, wrapper_keys) in enumerate(values, start=1):
        line += text.count("\n", counted, start)
        counted = start
        row, fault = take_row(value, fault)
        excerpt = text[start : start + EXCERPT_CHARACTERS]
        yield Record(number, line, row, fault, excerpt, wrapper_keys=wrapper_keys)
