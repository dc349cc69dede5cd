"""Local files of a pool: opened, unpacked and checked against their names, with every failure explained."""

from __future__ import annotations

import gzip
import io
import os
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from tokenclean.errors import PoolError


class Packing(NamedTuple):
    """A compression: its name, the command that unpacks, and the bytes every file of it starts with."""

    name: str
    command: str
    magic: bytes


PACKINGS = {".gz": Packing("gzip", "zcat", b"\x1f\x8b"), ".zst": Packing("zstd", "zstdcat", b"\x28\xb5\x2f\xfd")}
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
READ_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException)


def split_name(path: Path) -> tuple[str, str]:
    """The suffix that names the format and the one that names the packing, lower case, each empty where absent."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKINGS else ""
    return suffixes[-1] if suffixes else "", packing


@contextmanager
def open_text(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a text file, unpacked, with the first of them checked.

    Raises PoolError where the file cannot be opened, is empty, or is not what its name says.
    """
    packing = PACKINGS.get(split_name(path)[1])
    with path.open("rb", buffering=_BUFFER_BYTES) as packed, _unpack(path, packed, packing) as file:
        _check_start(path, file.peek(8), "text", packing)
        yield file


def describe_failure(path: Path, lines: int, error: Exception) -> str:
    """The message for an error, one of ``READ_ERRORS``, that ends the reading of a text file after some lines."""
    packing = PACKINGS.get(split_name(path)[1])
    # Damage found while unpacking carries no number of the operating system.
    if packing is None or (isinstance(error, OSError) and error.errno is not None):
        return describe_unreadable(path, cast(OSError, error))
    return _describe_damage(path, packing, lines, error)


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


def refuse_split(path: Path, split: str | None) -> None:
    """Raises PoolError where a split is named for a file that has none."""
    if split is not None:
        raise PoolError(f"{path}: has no splits, so that the split {split!r} cannot be read; leave the split out")


def describe_folder(path: Path) -> str:
    """The message for a folder that is no saved dataset."""
    endings = tuple(suffix + packing for suffix in DATA_SUFFIXES for packing in ("", *PACKINGS))
    names = [name for name in _list_names(path) if name.lower().endswith(endings)]
    holds = f" (it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{path}: is a folder; name the data files in it{holds}"


def _unpack(path: Path, packed: BinaryIO, packing: Packing | None) -> io.BufferedReader:
    reader = cast(io.BufferedReader, packed)
    if packing is None:
        return reader
    _check_start(path, reader.peek(8), packing.name, None)
    # Both readers below are raw streams in all but name: a wider buffer makes their lines several times as fast.
    unpacked: Any = (
        gzip.GzipFile(fileobj=reader) if packing.name == "gzip" else pa.CompressedInputStream(reader, packing.name)
    )
    return io.BufferedReader(unpacked, _BUFFER_BYTES)


def _check_start(path: Path, start: bytes, expected: str, packing: Packing | None) -> None:
    """Raises PoolError where the first bytes are not ``expected``: text, or the packing of that name."""
    if not start:
        raise PoolError(f"{path}: is empty; expected at least one row")
    inside = f" inside the {packing.name} data" if packing else ""
    for magic, (holds, remedy) in _STARTS.items():
        if start.startswith(magic) and holds != f"{expected} data":
            raise PoolError(f"{path}: holds {holds}{inside}, which its name does not say; {remedy}")
    wanted = {packing.name: packing.magic for packing in PACKINGS.values()}.get(expected, b"")
    if not start.startswith(wanted):
        raise PoolError(f"{path}: holds no {expected} data, as its name says; take {path.suffix} off its name")


def _describe_damage(path: Path, packing: Packing, lines: int, error: Exception) -> str:
    target = path.with_name(f"{path.stem.split('.')[0]}.rescued{split_name(path)[0]}")
    rescue = f"{packing.command} {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    return (
        f"{path}: the {packing.name} data are damaged or cut off after line {lines} ({error}); fetch the file again, "
        f"or keep the lines that can be read with: {rescue}"
    )


def _list_names(folder: Path) -> list[str]:
    """Sorted names in a folder; none where it may not be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
