"""The state of reading one row: its source's names and options, and the notes made while parsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenclean.pool.conversation import Role
from tokenclean.pool.formats.field_types import Row, decode_json, decode_literal, read_list

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
"""Usual names of the roles, in small letters -> ours."""


@dataclass(frozen=True)
class Names:
    """The names and choices of a source.

    ``roles``: role name in small letters -> role. ``columns``: our key -> the message's key, for those that have
    another name. ``ignored``: keys that are left unread on purpose. ``repairs_thoughts``: an answer with ``</think>``
    alone gets the tag that opens the thoughts. ``reads_literals``: texts where a list or an object is expected may hold
    it as Python writes it.
    """

    roles: Mapping[str, Role] = field(default_factory=lambda: ROLE_NAMES)
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    repairs_thoughts: bool = False
    reads_literals: bool = False


@dataclass
class RowContext:
    """One row being read. ``is_padded``: its objects hold a null for every key that other rows have (Arrow).

    ``unread``: keys that hold something and were not used. ``blank_answers``: places of answers that say nothing.
    ``notes``: what was done to the row, each once. ``as_text``: tools and arguments that stood in the row as JSON
    text, whose nulls are meant. ``consumed``: keys of the row that were dealt with beside those of its format.
    ``history_is_context``: answers of a ``history`` are not trained.
    """

    names: Names = field(default_factory=Names)
    is_padded: bool = False
    unread: dict[str, None] = field(default_factory=dict)
    blank_answers: list[str] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    as_text: set[str] = field(default_factory=set)
    consumed: set[str] = field(default_factory=set)
    history_is_context: bool = False

    def note(self, text: str) -> None:
        self.notes[text] = None

    def decode(self, text: str, where: str) -> Any:
        """The value whose JSON text stands at ``where``, or Python's where the source asks for that. Raises
        RowError."""
        if self.names.reads_literals and not isinstance(value := decode_literal(text), str):
            return value
        return decode_json(text, where)

    def read_list(self, row: Row, key: str, prefix: str = "") -> list[Any]:
        """The list under ``key``, or the one whose text stands there (a CSV cell); empty for null or blank text."""
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            row = {key: self.decode(value, f"{prefix}{key}")}
        return read_list(row, key, prefix)
