"""Rows of JSON objects that stand one behind the other, over as many lines as they like, or that one object wraps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from tokenclean.errors import PoolError
from tokenclean.pool.reading.json_array import Found, walk_elements
from tokenclean.pool.reading.json_values import is_message, name_messages, parse_value, skip_space, take_row
from tokenclean.pool.reading.text_lines import TextLines

# Keys that only a row has: an object with one of them wraps no rows, whatever lists it holds.
_ROW_KEYS = {
    *("messages", "conversations", "conversation", "history", "prompt", "completion", "chosen", "rejected"),
    *("tools", "functions", "instruction", "output", "response", "question", "answer", "text", "input_ids"),
}
# Where the next object starts behind a broken one: at the start of a line or, in a text without indentation, where also
# the objects inside an object start there, behind a line that ends with } and no comma.
_NEXT_AT_LINE_START = re.compile(r"^(?=\{)", re.MULTILINE)
_NEXT_BEHIND_BRACE = re.compile(r"\}[ \t\r]*\n[ \t\r\n]*(?=\{)")
# Rows inside an object have a comma between them, or stand further to the right.
_NEXT_ALONE = re.compile(r"\}[ \t\r]*\n(?:[ \t\r]*\n)*+(?=\{)")
TEXT_BEHIND_OBJECT = "expected nothing behind the object that wraps the rows"
_FLAT_KEY = re.compile(r'^"', re.MULTILINE)
_SEARCHED_AGAIN = 4  # so many times the length of the text may be parsed again to find the objects inside broken ones


class _Entry(NamedTuple):
    """A key of an object and its value. ``first``: the first item of a list, None for anything else."""

    key: str
    start: int
    first: Any


def walk_objects(text: str, source: TextLines, split: str | None) -> Iterator[Found]:
    """The rows of a text that starts with an object: those that it wraps, where it fills the text, else every value.

    An object wraps rows if one of its values is a list of objects that are no messages, or of conversations, and none
    of its keys is one of a row. Raises PoolError where it has several such lists and ``split`` names none of them, and
    where there is a split but no such list.
    """
    start = skip_space(text, 0)
    first = parse_value(text, start, "value")._replace(value=None)  # which may be as large as the file
    next_object = _NEXT_BEHIND_BRACE if _FLAT_KEY.search(text, start) else _NEXT_AT_LINE_START
    is_sound = first.is_complete and not first.fault
    behind = skip_space(text, first.end) if is_sound else len(text)
    is_alone = behind == len(text) or not text.startswith(("{", "[", ","), behind)
    is_alone = is_alone and not _NEXT_ALONE.search(text, first.end - 1 if is_sound else start + 1)
    entries = _list_wrapped(text, start) if is_alone else []
    if not entries:
        refuse_split(source, split)
        yield from _walk_values(text, start, next_object, source)
        return
    entry = _choose_entry(entries, source, split)
    keys = tuple(_write_key(other.key) for other in entries if not _holds_rows(other.first) and other.key != entry.key)
    has_fault = False
    for found in walk_elements(text, entry.start + 1, source):
        has_fault = has_fault or bool(found.fault)
        yield found._replace(wrapper_keys=keys)
    if not is_sound and not has_fault:
        yield Found(min(first.end, len(text) - 1), None, first.fault, keys)
    elif behind < len(text):
        yield Found(behind, None, TEXT_BEHIND_OBJECT, keys)


def wraps_rows(text: str) -> bool:
    """Whether a text is one object, or starts one that breaks off, that wraps rows."""
    return bool(_list_wrapped(text, skip_space(text, 0)))


def refuse_split(source: TextLines, split: str | None) -> None:
    """Raises PoolError where a split is named for a file that has none."""
    if split is not None:
        raise PoolError(
            f"{source.path}: has no splits, so that the split {split!r} cannot be read; leave the split out"
        )


def _walk_values(text: str, at: int, next_object: re.Pattern[str], source: TextLines) -> Iterator[Found]:
    """Every value; after a broken one, go on at the next object, be it inside the text that was taken for the value."""
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
        yield Found(at, None, source.describe_bad_byte(text, "value", at, stop) or fault or take_row(value)[1])
        at = stop


def _list_wrapped(text: str, at: int) -> list[_Entry]:
    """The entries of an object that wraps rows, up to where it breaks; none for any other object."""
    entries = _list_entries(text, at)
    is_row = any(
        (entry.key in _ROW_KEYS and not name_messages(entry.first)) or is_message(entry.first) for entry in entries
    )
    return entries if not is_row and any(_holds_rows(entry.first) for entry in entries) else []


def _list_entries(text: str, at: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}  # of a key given twice the last counts, as in JSON
    at = skip_space(text, at + 1)
    while text.startswith('"', at):
        key = parse_value(text, at)
        colon = skip_space(text, key.end)
        if not key.is_complete or not text.startswith(":", colon):
            break
        start = skip_space(text, colon + 1)
        parsed = parse_value(text, start)
        entries[key.value] = _Entry(key.value, start, _find_first(text, start, parsed.value))
        at = skip_space(text, parsed.end)
        if not parsed.is_complete or not text.startswith(",", at):
            break
        at = skip_space(text, at + 1)
    return list(entries.values())


def _find_first(text: str, start: int, value: Any) -> Any:
    if isinstance(value, list):
        return value[0] if value else None
    is_broken_list = value is None and text.startswith("[", start)
    return parse_value(text, skip_space(text, start + 1)).value if is_broken_list else None


def _holds_rows(first: Any) -> bool:
    return (isinstance(first, dict) and not is_message(first)) or bool(name_messages(first))


def _choose_entry(entries: list[_Entry], source: TextLines, split: str | None) -> _Entry:
    lists = {entry.key: entry for entry in entries if _holds_rows(entry.first)}
    names = " and ".join(map(repr, lists))
    if split is None:
        if len(lists) > 1:
            raise PoolError(
                f"{source.path}: holds lists of rows under {names}; choose one: --split {next(iter(lists))}"
            )
        return next(iter(lists.values()))
    if split not in lists:
        close = get_close_matches(split, lists, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PoolError(f"{source.path}: holds no list of rows under {split!r}, only under {names}{hint}")
    return lists[split]


def _write_key(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()
