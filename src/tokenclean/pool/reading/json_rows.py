"""Rows of JSON text: one value a line, the elements of one array, or objects over several lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from tokenclean.errors import PoolError
from tokenclean.pool.reading.json_values import (
    Found,
    is_message,
    name_messages,
    parse_line,
    parse_value,
    skip_space,
    take_row,
    walk_array,
    walk_elements,
)
from tokenclean.pool.reading.record import EXCERPT_CHARACTERS, Record
from tokenclean.pool.reading.text_files import TextLines, choose_split, refuse_split, split_name

_SHOWN_LINES = 3  # as many as show the shape
_LINE_SUFFIXES = (".jsonl", ".ndjson")
# Keys that only a row has: an object with one of them wraps no rows, even if it holds lists.
_ROW_KEYS = {
    *("messages", "conversations", "conversation", "history", "prompt", "completion", "chosen", "rejected"),
    *("tools", "functions", "instruction", "output", "response", "question", "answer", "text", "input_ids"),
}
# Where the next object starts after a broken one: at the start of a line. In a text without indentation, where the
# objects inside an object start there too, it comes after a line that ends with } and no comma.
_NEXT_AT_LINE_START = re.compile(r"^(?=\{)", re.MULTILINE)
_NEXT_BEHIND_BRACE = re.compile(r"\}[ \t\r]*\n[ \t\r\n]*(?=\{)")
# Rows inside an object have a comma between them, or are indented further.
_NEXT_ALONE = re.compile(r"\}[ \t\r]*\n(?:[ \t\r]*\n)*+(?=\{)")
TEXT_BEHIND_OBJECT = "expected nothing after the object that wraps the rows"
_FLAT_KEY = re.compile(r'^"', re.MULTILINE)
_SEARCHED_AGAIN = 4  # so many times the length of the text may be parsed again to find the objects inside broken ones


Shape = Literal["lines", "array", "objects"]


class _Entry(NamedTuple):
    """A value of an object. ``first``: the first item of a list, None for anything else."""

    start: int
    first: object

    @property
    def holds_rows(self) -> bool:
        return (isinstance(self.first, dict) and not is_message(self.first)) or bool(name_messages(self.first))


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
    if shape != "objects":
        refuse_split(path, split)
    if shape == "lines":
        yield from _read_lines(lines, source)
        return
    # A bad byte becomes a lone surrogate, so that it spoils its own row only.
    text = b"".join(lines).decode("utf-8", "surrogateescape")
    yield from _place_rows(text, walk_array(text, source) if shape == "array" else _walk_objects(text, source, split))


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
        return "objects" if may_wrap and _list_wrapped(first) else "lines"
    if not parse_line(first)[1]:
        return "lines"
    # The first line is broken, or goes on with the second.
    if isinstance(parse_line(second)[0], dict | list):
        return "objects" if first.endswith("[") and third.startswith("]") else "lines"
    if second.startswith("{"):
        return "objects" if first.endswith("[") else "lines"
    is_begun = first.startswith("{") or (first.lstrip().startswith(("{", '"')) and second[0] in " \t")
    return "objects" if is_begun else "lines"


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


def _walk_objects(text: str, source: TextLines, split: str | None) -> Iterator[Found]:
    """The rows of a text that starts with an object: those that it wraps, where it fills the text, else every value.

    An object wraps rows if one of its values is a list of objects that are no messages, or of conversations, and none
    of its keys is one of a row. Raises PoolError where it has several such lists and ``split`` names none of them, and
    where a split is given but there is no such list.
    """
    start = skip_space(text, 0)
    first = parse_value(text, start, "value")._replace(value=None)  # which may be as large as the file
    next_object = _NEXT_BEHIND_BRACE if _FLAT_KEY.search(text, start) else _NEXT_AT_LINE_START
    is_sound = first.is_complete and not first.fault
    behind = skip_space(text, first.end) if is_sound else len(text)
    is_alone = behind == len(text) or not text.startswith(("{", "[", ","), behind)
    is_alone = is_alone and not _NEXT_ALONE.search(text, first.end - 1 if is_sound else start + 1)
    entries = _list_wrapped(text) if is_alone else {}
    if not entries:
        refuse_split(source.path, split)
        yield from _walk_values(text, start, next_object, source)
        return
    lists = [key for key, entry in entries.items() if entry.holds_rows]
    chosen = choose_split(f"{source.path} (an object with lists of rows)", lists, split)
    others = (key for key, entry in entries.items() if not entry.holds_rows)
    keys = tuple(key.encode("utf-8", "backslashreplace").decode() for key in others)
    has_fault = False
    for found in walk_elements(text, entries[chosen].start + 1, source):
        has_fault = has_fault or bool(found.fault)
        yield found._replace(wrapper_keys=keys)
    if not is_sound and not has_fault:
        yield Found(min(first.end, len(text) - 1), None, first.fault, keys)
    elif behind < len(text):
        yield Found(behind, None, TEXT_BEHIND_OBJECT, keys)


def _walk_values(text: str, at: int, next_object: re.Pattern[str], source: TextLines) -> Iterator[Found]:
    """Every value; after a broken one, reading continues at the next object, even inside the text taken for the
    value."""
    budget = _SEARCHED_AGAIN * len(text)
    while at < len(text):
        value, fault, end, is_complete = parse_value(text, at, "value")
        # A text or number between objects is mostly what is left of a broken one, so that it ends where that ends.
        if is_complete and (fault or isinstance(value, dict | list)):
            fault = source.describe_bad_byte(text, "value", at, end) or fault
            yield Found(at, None if fault else value, fault)
            at = skip_space(text, end)
            if text.startswith(",", at):  # an array without its brackets
                at = skip_space(text, at + 1)
            continue
        budget -= end - at
        match = next_object.search(text, at + 1 if budget > 0 else max(end, at + 1))
        stop = match.end() if match else len(text)
        yield Found(at, None, source.describe_bad_byte(text, "value", at, stop) or take_row(value, fault)[1])
        at = stop


def _list_wrapped(text: str) -> dict[str, _Entry]:
    """The entries of an object that wraps rows, up to where it breaks; none for any other text."""
    entries = _list_entries(text)
    for key, (_, first) in entries.items():
        if is_message(first) or (key in _ROW_KEYS and not name_messages(first)):
            return {}
    return entries if any(entry.holds_rows for entry in entries.values()) else {}


def _list_entries(text: str) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}  # of a key given twice the last counts, as in JSON
    start = skip_space(text, 0)
    if not text.startswith("{", start):
        return {}
    at = skip_space(text, start + 1)
    while text.startswith('"', at):
        key = parse_value(text, at)
        colon = skip_space(text, key.end)
        if not key.is_complete or not text.startswith(":", colon):
            break
        start = skip_space(text, colon + 1)
        value, _, end, is_complete = parse_value(text, start)
        if value is None and text.startswith("[", start):  # a broken list, whose first item may be sound
            value = [parse_value(text, skip_space(text, start + 1)).value]
        entries[str(key.value)] = _Entry(start, value[0] if isinstance(value, list) and value else None)
        at = skip_space(text, end)
        if not is_complete or not text.startswith(",", at):
            break
        at = skip_space(text, at + 1)
    return entries
