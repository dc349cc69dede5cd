"""Files that are whole or absent: atomic writing, flushing to disk, hashes, and what a full or read-only disk means."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tokenclean.errors import RunFolderError

# Errors of the network and FUSE file systems that cannot flush a folder.
_CANNOT_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP})

_CHOOSE = "choose an output folder that can be written"
_ADVICE = {
    errno.ENOSPC: "free some space or choose another output folder",
    errno.EDQUOT: "free some space, have the quota raised or choose another output folder",
    errno.EFBIG: "raise the limit on a file's size (see ulimit -f) or choose another output folder",
    errno.EIO: "check the disk, or choose another output folder",
    errno.EROFS: _CHOOSE,
    errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE,
}
# Errors of reading too.
_AMBIGUOUS = frozenset({errno.EACCES, errno.EPERM, errno.EIO})
# The number in the text of Rust ("os error 28") and C++ ("[errno 28]") writers.
_NUMBER = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)


def fingerprint(value: object) -> str:
    """sha256 (hex) of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def array_hash(*arrays: np.ndarray) -> str:
    """sha256 (hex) of the arrays' dtypes and values."""
    return fingerprint([[a.dtype.str, hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()] for a in arrays])


def file_hash(path: Path | str) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_path(path: Path) -> Path:
    """Where this process writes the file ``path`` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def explained_refusals(action: str) -> Iterator[None]:
    """Raise the operating system's errors as RunFolderError: ``action`` (cannot write …), why, and what to do."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{action}: {disk_refusal(error) or error.strerror or error}") from error


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block succeeds, flush it to disk and rename it to ``path``.

    Raises RunFolderError, with what to do, where the file cannot be written.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with explained_refusals(f"cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    finally:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a new folder beside ``path``; when the block succeeds, flush its files and rename the folder to ``path``.

    Raises RunFolderError before the block where ``path`` exists and is not an empty folder; with what to do, where the
    disk refuses a write.
    """
    final = Path(path).absolute()
    if os.path.lexists(final) and (not final.is_dir() or any(final.iterdir())):
        raise RunFolderError(f"{path}: exists and is not an empty folder; name a new one, nothing was written")
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for parent, _, names in os.walk(temporary):
            for name in names:
                flush(Path(parent, name))
        temporary.rename(final)  # takes the place of an empty folder
        flush(final.parent)
    except Exception as error:
        reason = None if isinstance(error, RunFolderError) else disk_refusal(error, place=temporary.name)
        if reason is None:
            raise
        raise RunFolderError(f"cannot write {path}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path | str, value: object) -> None:
    """Write JSON atomically (UTF-8, indented); NaN and infinities, which JSON lacks, become null."""
    content = json_bytes(value)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def json_bytes(value: object) -> bytes:
    """What ``write_json`` writes. For a value that was read from JSON, these are the bytes it was read from."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates; backslashreplace turns them into JSON's escapes.
    return text.encode("utf-8", "backslashreplace")


def flush(path: Path) -> None:
    """Wait until a file's content is on disk, or the names in a folder, where its file system can flush folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def disk_refusal(error: BaseException, place: str = "") -> str | None:
    """Why the disk refused a write, and what to do about it; None where the error is of another kind.

    Looks at the error and its causes, of which the innermost counts: an OSError by its number, an error of a Rust or
    C++ writer by its text. Errors that reading gives too (permission denied) count only where their text holds
    ``place``.
    """
    reason = None
    cause: BaseException | None = error
    while cause is not None:
        number = _error_number(cause)
        if number in _ADVICE and (number not in _AMBIGUOUS or place in str(cause)):
            reason = f"{cause.strerror or cause if isinstance(cause, OSError) else cause}; {_ADVICE[number]}"
        cause = cause.__cause__
    return reason


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := _NUMBER.search(text):
        return int(found.group(1))
    return next((number for number in _ADVICE if os.strerror(number).lower() in text.lower()), None)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
