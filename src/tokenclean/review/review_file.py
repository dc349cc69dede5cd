"""``review.jsonl``: decisions, one a line, only ever appended to.

Each line is written whole and flushed to disk before its decision counts, under a lock, so that several writers lose
nothing. A line that a crash cut short stays in the file: the next line begins behind it, and readers list it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.review.decisions import Decision, LineError, from_line, to_line
from tokenclean.store import file_hash
from tokenclean.store.files import explained_refusals, flush

REVIEW = "review.jsonl"
"""The file's name in a run folder."""

_LOCK_SECONDS = 10


@dataclass(frozen=True)
class ReviewFile:
    """What was read. ``decisions``: in the order of the lines. ``faults``: the lines that hold no decision, each with
    file, place and reason."""

    path: Path
    decisions: tuple[Decision, ...]
    faults: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the file."""
        return file_hash(self.path)


def read_review(path: Path | str) -> ReviewFile:
    """Read a file of decisions. A line that holds none is listed and never hides the others. Raises PoolError where
    there is no such file, or it cannot be read."""
    path = Path(path)
    found = read_lines(path)
    unfinished = [] if found.is_whole else [f"{path}: the last line is left out: cut short, as by a crash"]
    return ReviewFile(path, tuple(map(from_line, found.lines)), (*found.faults, *unfinished))


@dataclass(frozen=True)
class Lines:
    """Part of a file. ``lines``: those that hold decisions, as they are; ``faults``: of the others, each with file,
    byte and reason. ``start``, ``end``: bytes; ``is_whole``: whether nothing is behind the last line's end."""

    lines: list[str]
    faults: list[str]
    start: int
    end: int
    is_whole: bool


def read_lines(path: Path | str, start: int = 0) -> Lines:
    """The whole lines from byte ``start`` on, or all where the file is shorter. A line without an end counts where it
    is whole, as one written by hand. Raises as ``read_review``."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = start if start <= file.seek(0, 2) else 0
            file.seek(start)
            content = file.read()
    except OSError as error:
        raise PoolError(f"{path}: cannot be read ({error.strerror}); `tokenclean review` writes such a file") from error
    *pieces, last = content.split(b"\n")
    end = start + len(content) - len(last)
    lines: list[str] = []
    faults: list[str] = []
    at = start
    for number, piece in enumerate(pieces, start=1):
        if piece.strip():
            try:
                lines.append(_checked(piece))
            except LineError as error:
                where = f"byte {at}" if start else f"line {number}"
                faults.append(f"{path}, {where}: left out: {error}")
        at += len(piece) + 1
    is_whole = not last.strip()
    if not is_whole:
        with suppress(LineError):
            lines.append(_checked(last))
            end, is_whole = start + len(content), True
    return Lines(lines, faults, start, end, is_whole)


def _checked(line: bytes) -> str:
    """The text of a line that holds a decision. Raises LineError for one that holds none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"expected UTF-8, found {error.object[error.start : error.end]!r}") from error
    from_line(text)
    return text


def append_decisions(path: Path | str, decisions: Sequence[Decision]) -> None:
    """Append decisions and flush them to disk; other writers wait meanwhile.

    Raises RunFolderError where the file cannot be written, or another writer holds its lock for ten seconds.
    """
    path = Path(path)
    lines = "".join(f"{to_line(decision)}\n" for decision in decisions).encode("utf-8")
    with explained_refusals(f"cannot write {path}"):
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS, fallback_to_soft=False)
        try:
            with lock:
                _append(path, lines)
        except Timeout:
            raise RunFolderError(f"cannot write {path}: another process holds its lock; try again") from None
        except NotImplementedError as error:
            raise RunFolderError(f"cannot write {path}: its file system has no locks, give --file elsewhere") from error


def _append(path: Path, lines: bytes) -> None:
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # behind a line that a crash cut short
        while lines:
            lines = lines[os.write(descriptor, lines) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        flush(path.parent)
