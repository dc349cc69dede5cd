"""Lines of text files in any encoding, as UTF-8, and what to say of bytes that cannot be decoded."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.reading.encodings import check_encoding, find_encoding, guess_encodings, is_mostly_utf8
from tokenclean.pool.reading.files import READ_ERRORS, describe_failure, open_text

# What a byte that is not UTF-8 becomes in text decoded with surrogateescape.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_MARK_BASE = 0xDC00
_HINT_CHARACTERS = 1 << 12  # of a row, to guess its encoding from


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file in UTF-8, or with a byte order mark. Raises PoolError as ``TextLines`` does."""
    return iter(TextLines(path))


class TextLines:
    """The physical lines of a text file with their ends, unpacked (.gz, .zst), in UTF-8, without a byte order mark.

    ``encoding``: what the file is decoded with; without it UTF-16 and UTF-32 are known by their byte order mark, and
    all else counts as UTF-8. A line that cannot be decoded is no UTF-8 either: ``describe_bad_byte`` describes its
    fault.

    Raises PoolError where the encoding is unknown or not the file's; and, while reading, where the file cannot be read,
    is empty, is not what its name says, or where its compressed data are damaged or cut off, maybe after some lines.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self._encoding = check_encoding(path, encoding)
        self._is_named = encoding is not None
        self._start = b""
        self._hint: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        try:
            with open_text(self.path) as file:
                self._start = file.peek(8)  # and all that has been read ahead
                self._encoding = find_encoding(self.path, self._start, self._encoding)
                for line in file if self._encoding is None else _recode(file, self._encoding):
                    count += 1
                    yield line.removeprefix(codecs.BOM_UTF8) if count == 1 else line
        except READ_ERRORS as error:
            raise PoolError(describe_failure(self.path, count, error)) from error
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
