"""One row of a pool as read, before its keys are interpreted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Record:
    """A row and its place.

    ``number``: from 1, the row's place in its file or split; for JSON lines it counts every physical line, blank ones
    too, and elsewhere every row, faulty ones too. ``line``: from 1, the physical line of a text file on which the row
    starts, and ``number`` for a table. ``row``: the object read, None where that failed. ``fault``: why, else empty.
    ``origin``: the source of ``excerpt`` (bytes of the file, text decoded with surrogateescape, or cells).

    ``is_padded``: whether the row comes from a table with struct columns, which store a key that an object lacks as
    null. ``wrapper_keys``: the keys of the JSON object around a file's rows that were not read.

    NaN and infinity, which JSON cannot write and pandas writes for a missing value, are None in ``row``: anywhere in
    JSON text, and in a table where they fill a cell.
    """

    number: int
    line: int
    row: Mapping[str, object] | None
    fault: str = ""
    origin: bytes | str | Mapping[str, object] = field(default=b"", repr=False)
    is_padded: bool = False
    wrapper_keys: tuple[str, ...] = ()

    def excerpt(self) -> str:
        """The first 200 characters of the row in its text file, or of its cells as JSON."""
        if isinstance(self.origin, Mapping):
            return _write_cells(self.origin)
        content = self.origin
        if isinstance(content, str):
            content = content[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape")
        # A character is at most four bytes, so these hold 200 characters and the rest of one that is cut.
        return content[: 4 * EXCERPT_CHARACTERS + 3].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


def _as_text(value: object) -> str:
    """A cell that is no JSON value: a date, a decimal, bytes."""
    return str(value[:EXCERPT_CHARACTERS] if isinstance(value, bytes) else value)


# It writes piece by piece, so that a huge row costs little more than the characters taken of it.
_ENCODER = json.JSONEncoder(ensure_ascii=False, skipkeys=True, default=_as_text)


def _write_cells(cells: Mapping[str, object]) -> str:
    text = ""
    for piece in _ENCODER.iterencode(cells):
        text += piece[:EXCERPT_CHARACTERS]
        if len(text) >= EXCERPT_CHARACTERS:
            break
    # A cell of Arrow's JSON type may hold lone surrogates, which are written as JSON's escapes.
    return text.encode("utf-8", "backslashreplace").decode()[:EXCERPT_CHARACTERS]
