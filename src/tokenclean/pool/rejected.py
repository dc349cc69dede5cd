"""Rows set aside: written down with their reasons, and a stop where they are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.conversation import RejectedRow
from tokenclean.store import atomic_path

_SHOWN = 3


def write_rejected(rejected: Iterable[RejectedRow], path: str | Path) -> None:
    """Write the rows set aside as JSON lines (``file``, ``line``, ``reason``, ``text``), whole or not at all.

    Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rejected:
            line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
            # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
            file.write(line.encode("utf-8", "backslashreplace"))


def check_rejected_share(
    rejected: Sequence[RejectedRow], count_rows: int, max_share: float, listing: str | Path
) -> None:
    """Stop where more than ``max_share`` of ``count_rows`` rows are set aside, after writing them to ``listing``.

    Raises PoolError with the first reasons, RunFolderError where the listing cannot be written.
    """
    if len(rejected) <= max_share * count_rows:
        return
    write_rejected(rejected, listing)
    first = "".join(f"\n  {row}" for row in rejected[:_SHOWN])
    raise PoolError(
        f"{len(rejected):,} of {count_rows:,} rows cannot be used ({len(rejected) / count_rows:.1%}), more than the "
        f"{max_share:.1%} of pool.max_rejected_share; all are listed in {listing} with file, line and reason. Mend "
        f"them, or raise the share (of a single command: --max-rejected-share). The first:{first}"
    )
