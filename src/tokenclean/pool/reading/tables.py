"""Rows of Arrow tables: Parquet files, and folders that ``datasets`` saved.

Cells are read as stored. No feature is decoded, so that a path in an image's or a sound's cell is never opened; a saved
folder is read without ``datasets``, and only files inside it are opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenclean.errors import PoolError
from tokenclean.pool.reading.json_values import DECODER
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.text_files import choose_split, describe_folder, describe_unreadable

BATCH_ROWS = 1024

# What pyarrow raises for a cell that has no Python value: text that is not UTF-8, a date out of range, a map with a key
# twice, a time zone nobody knows.
_CELL_ERRORS = (ValueError, OverflowError, KeyError, RecursionError, pa.ArrowException)
# What it raises for a damaged file: the name of a column may not be UTF-8, a length may ask for all memory there is.
_FILE_ERRORS = (OSError, UnicodeDecodeError, MemoryError, pa.ArrowException)


def read_parquet(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file. Raises PoolError where it cannot be read, is damaged or names a column twice."""
    return _read_batches(path, _parquet_batches(path), 1)


def read_saved_dataset(folder: Path, split: str | None) -> Iterator[Record]:
    """The rows of a folder that ``save_to_disk`` of ``datasets`` wrote.

    ``split``: needed where the folder holds more than one. Raises PoolError where the folder is no such folder, lacks
    the split, is damaged, or names a file outside it.
    """
    if (folder / "dataset_dict.json").exists():
        splits = _read_list(folder, "dataset_dict.json", "splits")
        for name in splits:
            _check_inside(folder, name, "dataset_dict.json")
        root, folder = folder, folder / choose_split(str(folder), splits, split)
    elif (folder / "state.json").exists():
        root = folder
        if split is not None and split != (found := _read_json(folder, "state.json").get("_split")):
            raise PoolError(f"{folder}: holds one split ({found or 'without a name'}), not {split!r}; leave it out")
    else:
        raise PoolError(describe_folder(folder))
    count = 0
    for entry in _read_list(folder, "state.json", "_data_files", root):
        name = entry.get("filename") if isinstance(entry, dict) else entry
        path = _check_inside(folder, name, "state.json", root)
        for record in _read_batches(path, _stream_batches(path), count + 1):
            count = record.number
            yield record


def read_batch(batch: pa.RecordBatch, number: int) -> Iterator[Record]:
    """The rows of a batch that is sound but for its texts, numbered from ``number``; structs become dicts.

    A cell that is NaN or infinite is None. A row with a cell that has no Python value is a record whose fault names the
    column.
    """
    try:
        rows = _list_rows(batch)
    except _CELL_ERRORS:
        rows = None
    is_padded = any(_holds(column.type, pa.types.is_struct) for column in batch.schema)
    for index in range(batch.num_rows):
        here = number + index
        row, fault = (rows[index], "") if rows is not None else _read_row(batch.slice(index, 1))
        yield Record(here, here, None if fault else row, fault, row, is_padded=is_padded)


def _read_row(batch: pa.RecordBatch) -> tuple[dict[str, Any], str]:
    """The cells of a batch of one row that can be read, and what is wrong with the others."""
    cells: dict[str, Any] = {}
    faults: list[str] = []
    for name in batch.schema.names:
        try:
            cells.update(_list_rows(batch.select([name]))[0])
        except _CELL_ERRORS as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error})"
            faults.append(f"column {name!r}: {reason}")
    return cells, "; ".join(faults)


def _list_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = batch.to_pylist(maps_as_pydicts="strict")
    for column in batch.schema:
        if _holds(column.type, _is_json):
            for row in rows:
                row[column.name] = _parse_json(row[column.name], column.type)
        elif pa.types.is_floating(column.type):
            for row in rows:
                if (cell := row[column.name]) is not None and not math.isfinite(cell):
                    row[column.name] = None
    return rows


def _holds(kind: pa.DataType, is_sought: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type is such a type or has one inside, however deep."""
    return is_sought(kind) or any(_holds(kind.field(n).type, is_sought) for n in range(kind.num_fields))


def _is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _parse_json(value: Any, kind: pa.DataType) -> Any:
    """Values of cells of Arrow's JSON type, which ``datasets`` gives to fields of mixed types."""
    if value is None or not _holds(kind, _is_json):
        return value
    if _is_json(kind):
        return DECODER.decode(value)
    if pa.types.is_struct(kind):
        return {field.name: _parse_json(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return {key: _parse_json(item, kind.item_type) for key, item in value.items()}
    return [_parse_json(item, kind.value_type) for item in value]


def _read_batches(path: Path, batches: Iterable[pa.RecordBatch], number: int) -> Iterator[Record]:
    """The rows of a file's batches, numbered from ``number``."""
    count = 0
    try:
        for batch in batches:
            yield from read_batch(batch, number + count)
            count += batch.num_rows
    except _FILE_ERRORS as error:
        raise PoolError(_describe_failure(path, count, error)) from error


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as handle:
        if not handle.peek(1):
            raise PoolError(f"{path}: is empty; expected a Parquet file")
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        _check_columns(path, file.schema_arrow.names)
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _stream_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as handle, pa.ipc.open_stream(handle) as stream:
        _check_columns(path, stream.schema.names)
        for whole in stream:
            # Arrow trusts the offsets in such a file: damaged ones would be read from anywhere in memory.
            whole.validate(full=True)
            yield from (whole.slice(start, BATCH_ROWS) for start in range(0, whole.num_rows, BATCH_ROWS))


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise PoolError(f"{path}: has no column; expected one for each key of a row")
    repeated = [name for index, name in enumerate(names) if name in names[:index]]
    if repeated:
        raise PoolError(f"{path}: has the column {repeated[0]!r} twice; give each column a name of its own")


def _check_inside(folder: Path, name: object, where: str, root: Path | None = None) -> Path:
    """The path of a file or folder that a dataset names, if it is a plain name of something inside the dataset."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise PoolError(f"{folder / where}: names {name!r}; expected the plain name of a file in the folder")
    path = folder / name
    if not path.resolve().is_relative_to((root or folder).resolve()):
        raise PoolError(f"{path}: is a link that leads out of the dataset; put what it points to in its place")
    return path


def _read_list(folder: Path, name: str, key: str, root: Path | None = None) -> list[Any]:
    entries = _read_json(folder, name, root).get(key)
    if not isinstance(entries, list) or not entries:
        raise PoolError(f"{folder / name}: {key}: expected a list that is not empty; save the dataset again")
    return entries


def _read_json(folder: Path, name: str, root: Path | None = None) -> dict[str, Any]:
    path = _check_inside(folder, name, name, root)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PoolError(describe_unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise PoolError(f"{path}: is not JSON ({error}); save the dataset again") from error
    if not isinstance(value, dict):
        raise PoolError(f"{path}: expected a JSON object; save the dataset again")
    return value


def _describe_failure(path: Path, rows: int, error: Exception) -> str:
    # What pyarrow finds wrong in the data carries no number of the operating system.
    if isinstance(error, OSError) and error.errno is not None:
        return describe_unreadable(path, error)
    reason = " ".join(str(error).split())[:200]
    return f"{path}: is damaged or no Arrow table after row {rows} ({reason}); write or fetch the file again"
