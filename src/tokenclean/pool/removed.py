"""Usable rows that a mixture leaves out: written down with the filter, the reason and what the reason rests on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tokenclean.pool.conversation import RemovedRow
from tokenclean.store import atomic_path


def write_removed(removed: Iterable[RemovedRow], path: str | Path) -> None:
    """Write the rows as JSON lines, whole or not at all; keys without a value are left out.

    Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in removed:
            values = {key: value for key, value in asdict(row).items() if value not in ("", None)}
            line = json.dumps(values, ensure_ascii=False) + "\n"
            # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
            file.write(line.encode("utf-8", "backslashreplace"))
