"""The options of a source, and the state of reading one of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from tokenclean.pool.conversation import Role
from tokenclean.pool.formats.column_mapping import MESSAGE_KEYS, check_columns, maps_rows
from tokenclean.pool.formats.field_types import Row, decode_text, read_list

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "environment", "tool_response", "tool_result"), "tool"),
}
"""Usual role names, in lower case -> ours."""


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a source are read.

    ``format``: a name in FORMATS, or ``auto`` to choose by the row's keys (``detect_format``). ``columns``, ``roles``:
    pairs of our key and the row's column, and of the row's role name and ours (see ``parsers``). ``ignore``: keys, and
    types of content parts, that are left unread on purpose. ``preferences``: ``refuse``, or ``chosen`` to train the
    chosen answer of preference rows and rows labelled true. ``python_literals``: where a list or an object is expected,
    a text may hold it in Python's spelling. ``repair_thoughts``: an answer with ``</think>`` alone gets the opening
    tag.

    Raises RecipeError for options that no row can satisfy.
    """

    format: str = "auto"
    columns: tuple[tuple[str, str], ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()
    preferences: str = "refuse"
    python_literals: bool = False
    repair_thoughts: bool = False

    def __post_init__(self) -> None:
        check_columns(self.format, dict(self.columns), dict(self.roles))

    @cached_property
    def role_of(self) -> dict[str, Role]:
        """Role name in lower case -> role."""
        return ROLE_NAMES | cast("dict[str, Role]", {name.strip().lower(): role for name, role in self.roles})

    @cached_property
    def column_of(self) -> dict[str, str]:
        """Our key -> the row's column."""
        return dict(self.columns)

    @cached_property
    def message_columns(self) -> dict[str, str]:
        """Our key -> the message's key, for those that have another name."""
        return {key: column for key, column in self.columns if key in MESSAGE_KEYS}

    @cached_property
    def ignored(self) -> frozenset[str]:
        """``ignore`` as a set."""
        return frozenset(self.ignore)

    @cached_property
    def maps_rows(self) -> bool:
        """Whether only mapped keys of a row are read."""
        return maps_rows(self.column_of)


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
