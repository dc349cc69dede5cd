"""Rows set aside: written down with their reasons, and a stop where they are too many."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import RejectedRow
from tokenclean.store import atomic_path

_SHOWN = 3


def write_rejected(rejected: Iterable[RejectedRow], path: str | Path) -> None:
    """Write the rows set aside as JSON lines (``file``, ``line``, ``reason``, ``text``), whole or not at all.

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


def check_rejected_share(
    rejected: Sequence[RejectedRow], count_rows: int, max_share: float, listing: str | Path
) -> None:
    """Stop where more than ``max_share`` of ``count_rows`` rows are set aside, after writing them to ``listing``.

    Raises PoolError with the first reasons, RunFolderError where the listing cannot be written.
    """
    if is_too_large_share(len(rejected), count_rows, max_share):
        write_rejected(rejected, listing)
        raise too_many_rejected(len(rejected), count_rows, max_share, listing)


def is_too_large_share(count: int, count_rows: int, max_share: float) -> bool:
    """Whether ``count`` of ``count_rows`` rows are more than may be set aside."""
    return count > max_share * count_rows


def too_many_rejected(count: int, count_rows: int, max_share: float, listing: str | Path) -> PoolError:
    """The error for ``count`` rows set aside, with the first reasons of ``listing``, which holds them all."""
    with Path(listing).open("rb") as lines:
        first = "".join(f"\n  {RejectedRow(**json.loads(line))}" for line in islice(lines, _SHOWN))
    return PoolError(
        f"{count:,} of {count_rows:,} rows cannot be used ({count / count_rows:.1%}), more than the {max_share:.1%} of "
        f"pool.max_rejected_share; all are listed in {listing} with file, line and reason. Mend them, or raise the "
        f"share (of a single command: --max-rejected-share). The first:{first}"
    )
