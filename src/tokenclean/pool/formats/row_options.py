"""How the rows of a source are read: its options, the keys and columns that they may name, and the state of one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import cast

from tokenclean.errors import RecipeError
from tokenclean.pool.conversation import Role
from tokenclean.pool.formats.field_types import Row, RowError, decode_text, describe_keys, quote, read_list
from tokenclean.pool.formats.known_names import (
    ALL_ROW_KEYS,
    COMMON_KEYS,
    KEYS_OF_ROWS_ALONE,
    MESSAGE_KEYS,
    MISSING,
    REQUIRED_KEYS,
    ROLE_NAMES,
    ROLES,
    ROW_KEYS,
)


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a source are read.

    ``format``: a name in FORMATS, or ``auto`` to choose by the row's keys (``detect_format``). ``columns``: our key
    -> the row's column; ``roles``: the row's role name -> ours (see ``known_formats``). ``ignored``: keys, and types of
    content parts, that are left unread on purpose. ``preferences``: ``refuse``, or ``chosen`` to train the chosen
    answer of preference rows and rows labelled true. ``python_literals``: where a list or an object is expected, a text
    may hold it in Python's spelling. ``repair_thoughts``: an answer with ``</think>`` alone gets the opening tag.

    Raises RecipeError for options that no row can satisfy.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    preferences: str = "refuse"
    python_literals: bool = False
    repair_thoughts: bool = False

    def __post_init__(self) -> None:
        check_columns(self.format, self.columns, self.roles)

    @cached_property
    def role_of(self) -> dict[str, Role]:
        """Role name in lower case -> role."""
        return ROLE_NAMES | cast("dict[str, Role]", {name.strip().lower(): role for name, role in self.roles.items()})

    @cached_property
    def message_columns(self) -> dict[str, str]:
        """Our key -> the message's key, for those that have another name."""
        return {key: column for key, column in self.columns.items() if key in MESSAGE_KEYS}

    @cached_property
    def maps_rows(self) -> bool:
        """Whether only mapped keys of a row are read."""
        return maps_rows(self.columns)


@dataclass
class RowContext:
    """One row being read. ``is_padded``: its objects hold a null for every key that other rows have (Arrow).

    ``unread``: keys that hold something and were not used. ``blank_answers``: places of answers that say nothing.
    ``notes``: what was done to the row, each once. ``as_text``: tools and arguments that the row held as JSON text,
    whose nulls are meant. ``consumed``: keys of the row that were handled beside those of its format.
    ``history_is_context``: answers of a ``history`` are not trained.
    """

    options: RowOptions = field(default_factory=RowOptions)
    is_padded: bool = False
    unread: dict[str, None] = field(default_factory=dict)
    blank_answers: list[str] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    as_text: set[str] = field(default_factory=set)
    consumed: set[str] = field(default_factory=set)
    history_is_context: bool = False

    def note(self, text: str) -> None:
        self.notes[text] = None

    def add_unread(self, keys: Iterable[str], parent: str) -> None:
        """Count keys of a message (``parent`` is ``messages[].``) or of an object in one as unread."""
        self.unread.update(dict.fromkeys(f"{parent}{key}" for key in keys))

    def decode(self, text: str, where: str) -> object:
        """The value that a text at ``where`` stands for (``decode_text``)."""
        return decode_text(text, where, literals=self.options.python_literals)

    def read_list(self, row: Row, key: str, prefix: str = "") -> list[object]:
        """The list under ``key``, or the one whose text is there; empty for null or blank text."""
        return read_list(row, key, prefix, literals=self.options.python_literals)


def check_columns(format: str, columns: Mapping[str, str], roles: Mapping[str, str]) -> None:
    """RecipeError, with every fault at once, where these options of a source fit no row."""
    problems = _check_keys(format, columns)
    problems += ["roles: a role's name is blank" for name in roles if not name.strip()]
    problems += [
        f"roles.{name}: expected one of {', '.join(ROLES)}, found {_name_close(role, ROLES)}"
        for name, role in roles.items()
        if role not in ROLES
    ]
    if problems:
        raise RecipeError(problems, source="options")


def find_column(row: Row, column: str) -> object:
    """The value of a column, MISSING where there is none.

    A dot leads into an object (``meta.question``) or to an element of a list (``dialogue.0``), unless a column has the
    whole name. A null along the path gives null.
    """
    if column in row:
        return row[column]
    value: object = row
    for part in column.split("."):
        if value is None:
            return None
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def maps_rows(columns: Mapping[str, str]) -> bool:
    """Whether keys of the row are mapped, so that only these are read; if not, at most keys of messages are mapped."""
    return any(key in KEYS_OF_ROWS_ALONE for key in columns)


def map_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under our keys: only those mapped, or the row unchanged where ``columns`` maps keys of messages alone.

    Raises RowError where a mapped column is missing.
    """
    if not maps_rows(columns):
        return row
    return {key: read_column(row, column, key) for key, column in columns.items() if key in ALL_ROW_KEYS}


def read_column(row: Row, column: str, key: str) -> object:
    """The value of ``column``, which is mapped to our ``key``; RowError naming both where it is missing."""
    value = find_column(row, column)
    if value is MISSING:
        raise RowError(f"{key}: no column {quote(column)}; found {describe_keys(row)}")
    return value


def fits(format: str, keys: Iterable[str]) -> bool:
    """Whether the keys hold all that a format needs."""
    return all(any(key in keys for key in group) for group in REQUIRED_KEYS[format])


def describe_needs(formats: Iterable[str]) -> str:
    """What each format needs, in words."""
    groups = {name: (" or ".join(group) for group in REQUIRED_KEYS[name]) for name in formats}
    return "; ".join(f"{name} needs {' and '.join(keys)}" for name, keys in groups.items())


def _check_keys(format: str, columns: Mapping[str, str]) -> list[str]:
    known = {*ALL_ROW_KEYS, *MESSAGE_KEYS, *COMMON_KEYS}
    problems = [f"columns: unknown key {_name_close(key, known)}" for key in columns if key not in known]
    problems += [f"columns.{key}: the column's name is blank" for key, column in columns.items() if not column.strip()]
    if {"role", "content"} & columns.keys() and {"from", "value"} & columns.keys():
        problems.append("columns: expected role and content, or from and value, found keys of both")
    mapped = columns.keys() & ALL_ROW_KEYS
    names = REQUIRED_KEYS if format == "auto" else [format]
    if maps_rows(columns) and not problems and not any(fits(name, mapped) for name in names):
        given = ", ".join(sorted(mapped))
        problems.append(f"columns: only mapped keys are read, and {given} is not enough: {describe_needs(names)}")
    if format != "auto":
        has_messages = format in ("messages", "sharegpt", "prompt_completion")
        used = {*COMMON_KEYS, *ROW_KEYS[format], *(MESSAGE_KEYS if has_messages else ())}
        problems += [f"columns.{key}: the format {format} does not read it" for key in columns if key in known - used]
    return problems


def _name_close(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1)
    return f"{quote(name)}; did you mean {close[0]!r}?" if close else quote(name)
