"""One row of a pool as it was read, before anyone asks what its keys mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Record:
    """A row and where it stood.

    ``number``: from 1, the row's place in its file or split; for JSON lines it counts every physical line, blank ones
    too, and elsewhere every row, faulty ones too. ``line``: from 1, the physical line of a text file on which the row
    starts, and ``number`` for a table. ``row``: the object read, None where it could not be. ``fault``: why not, else
    empty. ``origin``: what ``excerpt`` shows of it (bytes of the file, text decoded with surrogateescape, or cells).

    ``is_padded``: whether the row comes from a table with struct columns, which store a key that an object lacks as
    null. ``wrapper_keys``: the keys of the JSON object around a file's rows that were not read.

    NaN and infinity, which JSON cannot write and pandas writes for a missing value, are None in ``row``: anywhere in
    JSON text, and in a table where they fill a cell.
    """

    number: int
    line: int
    row: Mapping[str, Any] | None
    fault: str = ""
    origin: bytes | str | Mapping[str, Any] = field(default=b"", repr=False)
    is_padded: bool = False
    wrapper_keys: tuple[str, ...] = ()

    def excerpt(self) -> str:
        """The first 200 characters of the row as it stood in a text file, or of its cells as JSON."""
        if isinstance(self.origin, Mapping):
            return _head(_write_json(self.origin, EXCERPT_CHARACTERS))
        content = self.origin
        if isinstance(content, str):
            content = content[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape")
        # A character is at most four bytes, so these hold 200 characters and the rest of one that is cut.
        return content[: 4 * EXCERPT_CHARACTERS + 3].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


def _head(pieces: Iterator[str]) -> str:
    text = ""
    while len(text) < EXCERPT_CHARACTERS and (piece := next(pieces, None)) is not None:
        text += piece
    return text[:EXCERPT_CHARACTERS]


def _write_json(value: object, depth_left: int) -> Iterator[str]:
    """JSON bit by bit, so that a huge row costs no more than the characters taken of it.

    Every level writes a character, so nothing below ``depth_left`` levels is ever seen.
    """
    if depth_left == 0:
        return
    if isinstance(value, Mapping):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            yield f"{', ' if index else ''}{_write_text(str(key))}: "
            yield from _write_json(item, depth_left - 1)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _write_json(item, depth_left - 1)
        yield "]"
    elif isinstance(value, str):
        yield _write_text(value)
    elif value is None or isinstance(value, bool | int | float):
        yield json.dumps(value)
    else:  # a date, a decimal, bytes
        yield _write_text(str(value[:EXCERPT_CHARACTERS] if isinstance(value, bytes) else value))


def _write_text(text: str) -> str:
    # A cell of Arrow's JSON type may hold lone surrogates, which are written as JSON's escapes.
    return json.dumps(text[:EXCERPT_CHARACTERS], ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
