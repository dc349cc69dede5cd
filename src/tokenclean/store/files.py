"""Files that are whole or not there: atomic writing, flushing to disk, hashes, and a disk's refusal in words."""

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
from typing import Any

import numpy as np

from tokenclean.errors import RunFolderError

# Some network and FUSE file systems cannot flush a folder, and say so with one of these.
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
# Reading says these too.
_AMBIGUOUS = frozenset({errno.EACCES, errno.EPERM, errno.EIO})
# How Rust ("os error 28") and C++ ("[errno 28]") writers give the number in their text.
_NUMBER = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)


def fingerprint(value: Any) -> str:
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
    """Where this process writes the file ``path`` before it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, flush it to disk and rename it to ``path``.

    Raises RunFolderError, with what to do, where the file cannot be written.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush_file(temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"cannot write {path}: {disk_refusal(error) or error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a new folder beside ``path``; when the block ends well, flush its files to disk and rename it to ``path``.

    Raises RunFolderError, before the block, where ``path`` is there already and is not an empty folder, and, with what
    to do, where the disk refuses.
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
                flush_file(Path(parent, name))
        temporary.rename(final)  # takes the place of an empty folder
        flush_folder(final.parent)
    except Exception as error:
        reason = None if isinstance(error, RunFolderError) else disk_refusal(error, place=temporary.name)
        if reason is None:
            raise
        raise RunFolderError(f"cannot write {path}: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically (UTF-8, indented); NaN and infinities, which JSON does not know, become null."""
    content = json_bytes(value)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def json_bytes(value: Any) -> bytes:
    """What ``write_json`` writes. For a value that was read from JSON, these are the bytes it was read from."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
    return text.encode("utf-8", "backslashreplace")


def flush_file(path: Path) -> None:
    """Wait until the file's content is on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the names in the folder are on disk, where the file system can."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(folder)


def disk_refusal(error: BaseException, place: str = "") -> str | None:
    """Why the disk refused a write, and what to do about it, in words; None where nothing says that it did.

    The error and its causes are looked at, the innermost counts: an OSError by its number, an error of a Rust or C++
    writer by its text. Errors that reading gives too (permission denied) count only where their text holds ``place``.
    """
    words = None
    cause: BaseException | None = error
    while cause is not None:
        number = _error_number(cause)
        if number in _ADVICE and (number not in _AMBIGUOUS or place in str(cause)):
            words = f"{cause.strerror or cause if isinstance(cause, OSError) else cause}; {_ADVICE[number]}"
        cause = cause.__cause__
    return words


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := _NUMBER.search(text):
        return int(found.group(1))
    return next((number for number in _ADVICE if os.strerror(number).lower() in text.lower()), None)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
