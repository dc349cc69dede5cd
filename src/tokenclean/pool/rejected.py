"""Listings of the rows set aside and of the usable rows left out, as JSON lines with their reasons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from tokenclean.pool.conversation import RejectedRow, RemovedRow
from tokenclean.store import atomic_path


def write_rejected(rejected: Iterable[RejectedRow], path: str | Path) -> None:
    """Write the rows set aside one by one (the fields of a RejectedRow), all of them or none.

    Raises RunFolderError where the file cannot be written.
    """
    _write_lines(map(asdict, rejected), path)


def write_removed(removed: Iterable[RemovedRow], path: str | Path) -> None:
    """Write the rows that a mixture leaves out, all of them or none; keys without a value are omitted.

    Raises RunFolderError where the file cannot be written.
    """
    _write_lines(({key: v for key, v in asdict(row).items() if v not in ("", None)} for row in removed), path)


def join_rejected(parts: Iterable[str | Path], path: str | Path) -> None:
    """Write the lines of several listings as one, in constant memory; ``path`` may be one of them.

    Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            with Path(part).open("rb") as lines:
                shutil.copyfileobj(lines, file)


def read_rejected(path: str | Path) -> Iterator[RejectedRow]:
    """The rows of a listing, one by one."""
    with Path(path).open("rb") as lines:
        for line in lines:
            yield RejectedRow(**json.loads(line))


def _write_lines(rows: Iterable[Mapping[str, object]], path: str | Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False) + "\n"
            # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
            file.write(line.encode("utf-8", "backslashreplace"))
