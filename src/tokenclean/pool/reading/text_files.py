"""Text files of a pool: opened, unpacked, checked against their names, read as lines of UTF-8, with every failure
explained."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from tokenclean.errors import PoolError
from tokenclean.pool.reading.encodings import find_encoding, guess_encodings, is_mostly_utf8

PACKINGS = {".gz": ("gzip", "zcat"), ".zst": ("zstd", "zstdcat")}
"""Suffix -> name of the compression, and the command that unpacks."""
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

# What a file may hold although its name says text, and the way out.
_STARTS = {
    b"\x1f\x8b": ("gzip data", "add .gz to its name"),
    b"\x28\xb5\x2f\xfd": ("zstd data", "add .zst to its name"),
    b"PAR1": ("Parquet data", "let its name end in .parquet"),
    b"ARROW1": ("Arrow data", "write it as Parquet"),
    b"\xff\xff\xff\xff": ("Arrow data", "name the folder that save_to_disk wrote, or write it as Parquet"),
    b"PK\x03\x04": ("a zip archive", "unpack it with unzip; save a spreadsheet (.xlsx) as CSV"),
    b"BZh": ("bzip2 data", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("xz data", "unpack it with unxz"),
}
_BUFFER_BYTES = 1 << 17
_READ_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException)
# What a byte that is not UTF-8 becomes in text decoded with surrogateescape.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_MARK_BASE = 0xDC00
_HINT_CHARACTERS = 1 << 12  # of a row, to guess its encoding from


class TextLines:
    """The physical lines of a text file with their ends, unpacked (.gz, .zst), in UTF-8, without a byte order mark.

    ``encoding``: what the file is decoded with; without it UTF-16 and UTF-32 are known by their byte order mark, and
    all else counts as UTF-8. A line that cannot be decoded is no UTF-8 either: ``describe_bad_byte`` describes its
    fault.

    Raises PoolError where the encoding is not the file's; and, while reading, where the file cannot be read,
    is empty, is not what its name says, or where its compressed data are damaged or cut off, maybe after some lines.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        name = "utf-8" if encoding is None else codecs.lookup(encoding).name
        self._encoding = None if name in ("utf-8", "utf-8-sig") else name
        self._is_named = encoding is not None
        self._start = b""
        self._hint: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        try:
            with _open_text(self.path) as file:
                self._start = file.peek(8)  # and all that has been read ahead
                self._encoding = find_encoding(self.path, self._start, self._encoding)
                for line in file if self._encoding is None else _recode(file, self._encoding):
                    count += 1
                    yield line.removeprefix(codecs.BOM_UTF8) if count == 1 else line
        except _READ_ERRORS as error:
            raise PoolError(_describe_failure(self.path, count, error)) from error
        except UnicodeError as error:  # of a codec that gives up the whole text
            raise PoolError(
                f"{self.path}: cannot be decoded as {self._encoding} after line {count}: {error}"
            ) from error

    def describe_bad_byte(self, text: str, place: str, start: int = 0, end: int | None = None) -> str:
        """The fault of a row that holds a byte which could not be decoded; empty where it holds none.

        ``text``: decoded as UTF-8 with surrogateescape, the row from ``start`` to ``end``. ``place``: what its
        characters are counted in.
        """
        bad = _ESCAPED_BYTE.search(text, start, len(text) if end is None else end)
        if bad is None:
            return ""
        at = bad.start()
        found = _describe_byte(text, at, self._encoding is not None)
        fault = f"not {self._encoding or 'UTF-8'} ({found} at character {at - start + 1} of the {place})"
        if self._encoding is not None or self._is_named:
            return fault
        if self._hint is None:
            shown = start if at - start < _HINT_CHARACTERS else at
            self._hint = self._find_hint(text[shown : shown + 2 * _HINT_CHARACTERS])
        return fault + self._hint

    def _find_hint(self, row: str) -> str:
        """The option that names another encoding, unless what was read ahead shows that the file is UTF-8."""
        if is_mostly_utf8(self._start):
            return ""
        likely = guess_encodings(self._start + b"\n" + row.encode("utf-8", "surrogateescape"))
        self._start = b""
        named = f": --encoding {' or '.join(likely)}" if likely else " with --encoding"
        return f"; if the file has another encoding, name it{named}"


def split_name(path: Path) -> tuple[str, str]:
    """The suffix that names the format and the one that names the packing, lower case, each empty where absent."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKINGS else ""
    return suffixes[-1] if suffixes else "", packing


def refuse_split(path: Path, split: str | None) -> None:
    """Raises PoolError where a split is named for a file that has none."""
    if split is not None:
        raise PoolError(f"{path}: has no splits, so that the split {split!r} cannot be read; leave the split out")


def choose_split(place: str, splits: Sequence[str], split: str | None) -> str:
    """The split to read. Raises PoolError where none is named but several exist, or the one named does not."""
    names = ", ".join(splits) or "none"
    if split is None and len(splits) != 1:
        raise PoolError(f"{place}: name the split to read; it has {names}")
    if split is not None and split not in splits:
        close = get_close_matches(split, splits, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise PoolError(f"{place}: has no split {split!r}; it has {names}{hint}")
    return splits[0] if split is None else split


def describe_unreadable(path: Path, error: OSError) -> str:
    """The message for a file that the operating system would not open or read."""
    if path.is_dir():
        return describe_folder(path)
    if isinstance(error, PermissionError):
        return f"{path}: no permission to read it; try: chmod u+r {shlex.quote(str(path))}"
    if not isinstance(error, FileNotFoundError):
        return f"{path}: cannot be read: {error.strerror or error}"
    if not path.parent.is_dir():
        return f"{path}: no such file; the folder {path.parent.absolute()} does not exist"
    close = get_close_matches(path.name, _list_names(path.parent), n=1)
    hint = f"did you mean {path.with_name(close[0])}?" if close else f"looked in {path.parent.absolute()}"
    return f"{path}: no such file; {hint}"


def describe_folder(path: Path) -> str:
    """The message for a folder that is no saved dataset."""
    endings = tuple(suffix + packing for suffix in DATA_SUFFIXES for packing in ("", *PACKINGS))
    names = [name for name in _list_names(path) if name.lower().endswith(endings)]
    holds = f" (it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{path}: is a folder; name the data files in it{holds}"


@contextmanager
def _open_text(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, unpacked, with the first of them checked.

    Raises PoolError where the file cannot be opened, is empty, or is not what its name says.
    """
    packing = PACKINGS.get(split_name(path)[1], ("",))[0]
    with path.open("rb", buffering=_BUFFER_BYTES) as packed, _unpack(path, packed, packing) as file:
        _check_start(path, file.peek(8), "text", f" inside the {packing} data" if packing else "")
        yield file


def _unpack(path: Path, packed: BinaryIO, packing: str) -> io.BufferedReader:
    reader = cast(io.BufferedReader, packed)
    if not packing:
        return reader
    _check_start(path, reader.peek(8), packing)
    # Both readers below are raw streams in all but name: a wider buffer makes their lines several times as fast.
    unpacked: Any = gzip.GzipFile(fileobj=reader) if packing == "gzip" else pa.CompressedInputStream(reader, packing)
    return io.BufferedReader(unpacked, _BUFFER_BYTES)


def _check_start(path: Path, start: bytes, expected: str, inside: str = "") -> None:
    """Raises PoolError where the first bytes are not ``expected``: text, or the packing of that name."""
    if not start:
        raise PoolError(f"{path}: is empty; expected at least one row")
    holds, remedy = next((found for magic, found in _STARTS.items() if start.startswith(magic)), ("", ""))
    if holds == f"{expected} data":
        return
    if holds:
        raise PoolError(f"{path}: holds {holds}{inside}, which its name does not say; {remedy}")
    if expected != "text":
        raise PoolError(f"{path}: holds no {expected} data, as its name says; take {path.suffix} off its name")


def _describe_failure(path: Path, lines: int, error: Exception) -> str:
    """The message for an error, one of ``_READ_ERRORS``, that ends the reading of a text file after some lines."""
    suffix, packing = split_name(path)
    # Damage found while unpacking carries no number of the operating system.
    if isinstance(error, OSError) and (error.errno is not None or not packing):
        return describe_unreadable(path, error)
    name, command = PACKINGS[packing]
    rescued = path.with_name(f"{path.stem.split('.')[0]}.rescued{suffix}")
    return (
        f"{path}: the {name} data are damaged or cut off after line {lines} ({error}); fetch the file again, or keep "
        f"the lines that can be read with: {command} {shlex.quote(str(path))} > {shlex.quote(str(rescued))}"
    )


def _recode(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    """Lines as UTF-8; a byte that cannot be decoded becomes a lone surrogate, which is never UTF-8."""
    with io.TextIOWrapper(file, encoding, errors="tokenclean.mark", newline="\n") as text:
        for line in text:
            yield line.encode("utf-8", "surrogatepass")


def _mark_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_MARK_BASE + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("tokenclean.mark", _mark_bytes)


def _describe_byte(text: str, at: int, is_recoded: bool) -> str:
    """The byte escaped at a position, or the one encoded by a lone surrogate of three such bytes."""
    value = ord(text[at]) - _MARK_BASE
    if is_recoded:
        character = text[at : at + 3].encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")
        value = ord(character) - _MARK_BASE
    return f"byte 0x{value:02x}" if 0 <= value < 256 else "a lone surrogate"


def _list_names(folder: Path) -> list[str]:
    """Sorted names in a folder; none where it may not be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
