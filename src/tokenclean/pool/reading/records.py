"""Rows of any local file or folder, by the reader for its kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenclean.errors import PoolError
from tokenclean.pool.reading.csv_rows import read_csv
from tokenclean.pool.reading.json_rows import read_json
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.tables import read_parquet, read_saved_dataset
from tokenclean.pool.reading.text_files import PACKINGS, refuse_split, split_name

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


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
    ``.jsonl`` and any other      JSON in one of the shapes of ``read_json``
    ============================  =========================================

    Text files may be packed (``.gz``, ``.zst``). ``split``: which split of a saved dataset, or list of a JSON object,
    needed where it has more than one. ``delimiter``: what separates the columns of a .csv or .tsv file, one character
    or ``tab``. ``encoding``: Python's name of a text file's encoding, needed where it is not UTF-8 and has no byte
    order mark of UTF-16 or UTF-32.

    A row that cannot be read is a record with a fault; what spoils the whole file raises PoolError, as does an option
    that does not fit it, at the latest after the rows before it.
    """
    suffix, packing = ("", "") if path.is_dir() else split_name(path)
    if delimiter is not None and suffix not in _DELIMITERS:
        raise PoolError(f"{path}: is no .csv or .tsv file, whose columns a delimiter separates; leave --delimiter out")
    if encoding is not None and (suffix == ".parquet" or path.is_dir()):
        raise PoolError(f"{path}: is no text file, which has an encoding; leave --encoding out")
    if path.is_dir():
        return read_saved_dataset(path, split)
    if suffix in (".parquet", *_DELIMITERS):
        refuse_split(path, split)
    if suffix == ".parquet":
        if packing:
            raise PoolError(f"{path}: is packed Parquet; unpack it first: {PACKINGS[packing][1]}")
        return read_parquet(path)
    if suffix in _DELIMITERS:
        return read_csv(path, "\t" if delimiter in ("tab", "\\t") else delimiter or _DELIMITERS[suffix], encoding)
    return read_json(path, split=split, encoding=encoding)
