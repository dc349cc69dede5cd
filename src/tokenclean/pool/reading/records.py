"""Rows of any local file or folder: the one place that knows which reader reads what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.reading.csv_rows import read_csv
from tokenclean.pool.reading.files import PACKINGS, split_name
from tokenclean.pool.reading.hub import read_hub
from tokenclean.pool.reading.json_rows import read_json
from tokenclean.pool.reading.record import EXCERPT_CHARACTERS, Record
from tokenclean.pool.reading.tables import read_parquet, read_saved_dataset

__all__ = ["EXCERPT_CHARACTERS", "Record", "read_hub", "read_records"]


def read_records(
    path: Path, *, split: str | None = None, delimiter: str | None = None, encoding: str | None = None
) -> Iterator[Record]:
    """The rows of a local file or of a folder that ``datasets`` saved, in their order, faulty ones too.

    ============================  =========================================
    name                          read as
    ============================  =========================================
    a folder                      dataset written by ``save_to_disk``
    ``.parquet``                  Parquet
    ``.csv``, ``.tsv``            header line and rows, split at , or tab
    ``.jsonl`` and any other      JSON lines, or a JSON array if it starts with ``[``
    ============================  =========================================

    Text files may be packed (``.gz``, ``.zst``). ``split``: which split of a saved dataset, needed where it has more
    than one. A row that cannot be read is a record with a fault; what spoils the whole file raises PoolError, at the
    latest after the rows before it.
    """
    if path.is_dir():
        return read_saved_dataset(path, split)
    if split is not None:
        raise PoolError(f"{path}: has no splits, so that the split {split!r} cannot be read; leave the split out")
    suffix, packing = split_name(path)
    if suffix == ".parquet":
        if packing:
            raise PoolError(f"{path}: is packed Parquet; unpack it first: {PACKINGS[packing].command}")
        return read_parquet(path)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, "," if suffix == ".csv" else "\t")
    return read_json(path)
