"""Rows of JSON objects that follow one another, each over any number of lines, or that one object wraps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import NamedTuple

from tokenclean.errors import PoolError
from tokenclean.pool.reading.files import refuse_split
from tokenclean.pool.reading.json_array import Found, walk_elements
from tokenclean.pool.reading.json_values import is_message, name_messages, parse_value, skip_space, take_row
from tokenclean.pool.reading.text_lines import TextLines

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


class _Entry(NamedTuple):
    """A value of an object. ``first``: the first item of a list, None for anything else."""

    start: int
    first: object

    @property
    def holds_rows(self) -> bool:
        return (isinstance(self.first, dict) and not is_message(self.first)) or bool(name_messages(self.first))


def walk_objects(text: str, source: TextLines, split: str | None) -> Iterator[Found]:
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
    entries = _list_wrapped(text, start) if is_alone else {}
    if not entries:
        refuse_split(source.path, split)
        yield from _walk_values(text, start, next_object, source)
        return
    chosen = _choose_list(entries, source, split)
    keys = tuple(_write_key(key) for key, entry in entries.items() if not entry.holds_rows and key != chosen)
    has_fault = False
    for found in walk_elements(text, entries[chosen].start + 1, source):
        has_fault = has_fault or bool(found.fault)
        yield found._replace(wrapper_keys=keys)
    if not is_sound and not has_fault:
        yield Found(min(first.end, len(text) - 1), None, first.fault, keys)
    elif behind < len(text):
        yield Found(behind, None, TEXT_BEHIND_OBJECT, keys)


def wraps_rows(text: str) -> bool:
    """Whether a text is one object, or starts one that breaks off, that wraps rows."""
    return bool(_list_wrapped(text, skip_space(text, 0)))


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


def _list_wrapped(text: str, at: int) -> dict[str, _Entry]:
    """The entries of an object that wraps rows, up to where it breaks; none for any other object."""
    entries = _list_entries(text, at)
    is_row = any(
        (key in _ROW_KEYS and not name_messages(entry.first)) or is_message(entry.first)
        for key, entry in entries.items()
    )
    return entries if not is_row and any(entry.holds_rows for entry in entries.values()) else {}


def _list_entries(text: str, at: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}  # of a key given twice the last counts, as in JSON
    at = skip_space(text, at + 1)
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


def _choose_list(entries: dict[str, _Entry], source: TextLines, split: str | None) -> str:
    lists = [key for key, entry in entries.items() if entry.holds_rows]
    names = " and ".join(map(repr, lists))
    if split is None:
        if len(lists) > 1:
            raise PoolError(f"{source.path}: holds lists of rows under {names}; choose one: --split {lists[0]}")
        return lists[0]
    if split not in lists:
        close = get_close_matches(split, lists, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PoolError(f"{source.path}: holds no list of rows under {split!r}, only under {names}{hint}")
    return split


def _write_key(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()
