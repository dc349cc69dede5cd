"""Rows of comma- or tab-separated text whose first line names the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.text_files import TextLines

_FIELD_BYTES_LIMIT = 2**31 - 1  # the most that csv takes on every platform
_DELIMITERS = ",;\t|"  # what an option is suggested for
_SEPARATOR = re.compile(r'"?sep=([^"])"?', re.IGNORECASE)
_QUOTED_FIELD = re.compile(r'"(?:[^"]++|"")*+"')


def read_csv(path: Path, delimiter: str, encoding: str | None = None) -> Iterator[Record]:
    """The rows below the header line, each cell a text; blank lines are skipped and not counted as rows.

    ``delimiter``: one character that separates the cells, no quote, line end or NUL; a first line
    ``sep=;``, which Excel writes, takes precedence. Column names are stripped of blanks, and a column without a name
    (an index, or a leftover of a spreadsheet) is named by its number.

    A row that has another number of fields than the header, cannot be decoded, holds a NUL or quotes its cells wrongly
    is a record with a fault. Raises PoolError as ``TextLines`` does, for a header that cannot name the columns, and for
    a quote that never closes, since all rows after it would be one cell.
    """
    source = TextLines(path, encoding)
    lines = iter(source)
    first = next(lines, b"")
    named = _SEPARATOR.fullmatch(first.decode("utf-8", "replace").strip("\r\n"))
    rows = _rows(source, lines, named[1], 2) if named else _rows(source, chain([first], lines), delimiter, 1)
    header: Sequence[str] | None = None
    number = 0
    for line, fields, fault, content in rows:
        if header is None:
            header = _check_header(path, line, fields, fault)
            continue
        number += 1
        if not fault and len(fields) != len(header):
            fault = f"another number of fields than the header has (expected {len(header)}, found {len(fields)})"
        yield Record(number, line, None if fault else dict(zip(header, fields, strict=True)), fault, content)


def _rows(
    source: TextLines, lines: Iterable[bytes], delimiter: str, line: int
) -> Iterator[tuple[int, list[str], str, bytes]]:
    """Line, fields, fault and bytes of each row that is not blank, the header among them. ``line``: of the first."""
    taken: list[bytes] = []  # the physical lines of the row being read
    is_at_end = False

    def decode_lines() -> Iterator[str]:
        nonlocal is_at_end
        for content in lines:
            taken.append(content)
            # A bad byte is found again in the row's bytes; here it must not end the reading.
            yield content.decode("utf-8", "surrogateescape")
        is_at_end = True

    # The limit is the process's; nothing may rely on a low one, and a cell with a long text must be read.
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_BYTES_LIMIT))
    reader = csv.reader(decode_lines(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        fields: list[str] = []
        fault = ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if is_at_end:
                raise PoolError(_describe_open_quote(source.path, line, taken, delimiter)) from None
            fault = f"broken CSV: {error}"
        content = b"".join(taken)
        if content.strip(b"\r\n"):
            yield line, fields, _find_fault(source, content) or fault, content.rstrip(b"\r\n")
        line += len(taken)


def _find_fault(source: TextLines, content: bytes) -> str:
    try:
        nul = content.decode("utf-8").find("\0")
    except UnicodeDecodeError:
        return source.describe_bad_byte(content.decode("utf-8", "surrogateescape"), "row")
    return f"a NUL in the row (character {nul + 1})" if nul >= 0 else ""


def _describe_open_quote(path: Path, line: int, taken: Sequence[bytes], delimiter: str) -> str:
    text = b"".join(taken).decode("utf-8", "surrogateescape")
    line += text.count("\n", 0, _find_open_quote(text, delimiter))
    return (
        f"{path}: the quote that opens on line {line} never closes, so that all that follows would be one cell; close "
        'it, or write a quote inside a quoted cell twice ("")'
    )


def _find_open_quote(text: str, delimiter: str) -> int:
    """Position of the quote that never closes, in a row whose earlier fields are sound."""
    at = 0
    while True:
        if not text.startswith('"', at):
            at = text.index(delimiter, at) + 1
        elif quoted := _QUOTED_FIELD.match(text, at):
            at = quoted.end() + 1
        else:
            return at


def _check_header(path: Path, line: int, fields: list[str], fault: str) -> Sequence[str]:
    place = f"{path}: line {line}: the header"
    if fault:
        raise PoolError(f"{place} cannot be read: {fault}; expected the names of the columns")
    fields = [name.strip() or f"column {number}" for number, name in enumerate(fields, start=1)]
    repeated = [name for index, name in enumerate(fields) if name in fields[:index]]
    if repeated:
        raise PoolError(f"{place} names the column {repeated[0]!r} twice; give each column a name of its own")
    if len(fields) == 1 and (others := [mark for mark in _DELIMITERS if mark in fields[0]]):
        mark = max(others, key=fields[0].count)
        option = "tab" if mark == "\t" else f"'{mark}'"
        raise PoolError(
            f"{place} is one column with {mark!r} in its name; if that separates the columns, say so: "
            f"--delimiter {option}"
        )
    return fields
