"""Rows set aside: written down with their reasons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from tokenclean.pool.conversation import RejectedRow
from tokenclean.store import atomic_path


def write_rejected(rejected: Iterable[RejectedRow], path: str | Path) -> None:
    """Write the rows set aside as JSON lines (the fields of a RejectedRow), whole or not at all.

    The rows are written as they come. Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rejected:
            line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
            # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
            file.write(line.encode("utf-8", "backslashreplace"))


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
