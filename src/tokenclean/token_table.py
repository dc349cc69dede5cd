"""Tables of per-token columns: Parquet files with one row a conversation, which every stage reads and adds to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.store import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_COLUMNS = ("id", "source", "original_id")
"""Columns with one value a row; every other column has one a token."""

_METADATA_KEY = b"tokenclean"
# What a column is read as, and the numpy kinds it may be stored in; any other column holds numbers of any kind.
_COLUMN_DTYPES = {"input_ids": (np.int64, "iu"), "is_response": (np.bool_, "biu"), "is_kept": (np.bool_, "biu")}


@dataclass(frozen=True)
class TokenTable:
    """Rows with per-token columns.

    ``ids``/``sources``: one a row. ``columns``: name to Ragged, all with equal offsets; always ``input_ids`` (int64)
    and ``is_response`` (bool), then ``base_loss``, ``reference_loss``, ``score`` (float32, nats, NaN off the
    response), ``is_kept`` (bool), ``weight`` (float32) as stages add them, and ``loss_weight`` (float32) where the
    data contain loss weights: ``weight`` is what a training uses, ``loss_weight`` the factor that it already includes.
    A token with a weight below 0 is unlearned and no response.
    ``metadata``: how the table was made. ``original_ids``: the rows' ids in their source, "" where a row has none;
    empty where no row has one.

    Raises TableError naming the column that is missing or does not fit the others.
    """

    ids: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, Ragged]
    metadata: Mapping[str, object] = field(default_factory=dict)
    original_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("input_ids", "is_response"):
            self[name]
        if self.original_ids and len(self.original_ids) != len(self.ids):
            raise TableError(f"this table has {len(self.ids)} ids and {len(self.original_ids)} original ids")
        if not len(self.ids) == len(self.sources) == len(self["input_ids"]):
            counts = f"{len(self.ids)} ids, {len(self.sources)} sources and {len(self['input_ids'])} rows of input_ids"
            raise TableError(f"this table has {counts}; they must be as many")
        for name, column in self.columns.items():
            try:
                self["input_ids"].check_aligned(column)
            except ValueError as error:
                raise TableError(f"column {name!r}: {error}") from error

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Ragged:
        if name not in self.columns:
            raise TableError(f"this table has no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def take(self, rows: np.ndarray) -> TokenTable:
        """The given rows, int64, in the given order."""
        chosen = rows.tolist()
        return replace(
            self,
            ids=tuple(self.ids[row] for row in chosen),
            sources=tuple(self.sources[row] for row in chosen),
            columns={name: column.take(rows) for name, column in self.columns.items()},
            original_ids=tuple(self.original_ids[row] for row in chosen) if self.original_ids else (),
        )

    def with_columns(self, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """The same rows with further or replaced columns and metadata."""
        return replace(self, columns={**self.columns, **columns}, metadata={**self.metadata, **metadata})

    def weighed(self, weights: Ragged) -> Ragged:
        """Token weights (float32) times the loss weights of the data, where there are any (``multiply_weights``)."""
        return multiply_weights(weights, self["loss_weight"]) if "loss_weight" in self.columns else weights


def multiply_weights(weights: Ragged, loss_weights: Ragged) -> Ragged:
    """Token weights (float32) times the data's loss weights; a token to unlearn, with a loss weight below 0, has that.

    Which tokens are worth training is asked of targets alone, so a strategy has no say in what is unlearned.
    """
    given = loss_weights.values
    return weights.with_values(np.where(given < 0, given, weights.values * given).astype(np.float32))


@dataclass
class TableWriter:
    """Writes the parts of a table (``open_table``). ``metadata`` may be replaced until the last part."""

    path: Path
    metadata: Mapping[str, object]
    _temporary: Path
    _file: pq.ParquetWriter | None = None
    _parts: int = 0

    def write(self, part: TokenTable) -> None:
        """Append the rows as one row group (zstd). The metadata of the part are ignored.

        Raises TableError naming the column that is not as in the first part.
        """
        import pyarrow.parquet as pq

        stored = _to_arrow(part)
        if self._file is None:
            schema = stored.schema.with_metadata({_METADATA_KEY: _encoded(self.metadata)})
            self._file = pq.ParquetWriter(self._temporary, schema, **_write_options(schema))
        else:
            self._check_columns(self._file.schema, stored.schema)
        self._file.write_table(stored.select(self._file.schema.names), row_group_size=max(1, len(part)))
        self._parts += 1

    def close(self, *, is_whole: bool) -> None:
        """Close the file, with its metadata if all parts were written."""
        if is_whole and self._file is None:
            columns = {"input_ids": Ragged.from_rows([], np.int64), "is_response": Ragged.from_rows([], np.bool_)}
            self.write(TokenTable((), (), columns))
        if self._file is None:
            return
        try:
            if is_whole:  # the schema's copy was written with the first part; ``_metadata`` reads this one
                self._file.add_key_value_metadata({_METADATA_KEY: _encoded(self.metadata)})
        finally:
            self._file.close()

    def _check_columns(self, first: pa.Schema, here: pa.Schema) -> None:
        for name in dict.fromkeys([*first.names, *here.names]):
            expected, found = (
                str(schema.field(name).type) if name in schema.names else "no such column" for schema in (first, here)
            )
            if found != expected:
                raise TableError(
                    f"{self.path}: column {name!r}: expected {expected} as in the first part, found {found} in part "
                    f"{self._parts + 1}; all parts of a table need the same columns and dtypes"
                )


@contextmanager
def open_table(path: Path | str, metadata: Mapping[str, object]) -> Iterator[TableWriter]:
    """Write a table part by part, in the memory of one part; the file appears whole at the block's end, or not at all.

    A block without any part writes a table of no rows. Raises RunFolderError where the file cannot be written.
    """
    with atomic_path(path) as temporary:
        writer = TableWriter(Path(path), metadata, temporary)
        try:
            yield writer
            writer.close(is_whole=True)
        except BaseException:
            with suppress(OSError, ValueError):  # the error of the block is the one to report
                writer.close(is_whole=False)
            raise


def write_table(table: TokenTable, path: Path | str) -> None:
    """Write the table as Parquet (zstd, one row group), under a temporary name that is renamed at the end."""
    with open_table(path, table.metadata) as writer:
        writer.write(table)


def _to_arrow(table: TokenTable) -> pa.Table:
    import pyarrow as pa

    arrays: dict[str, pa.Array] = {
        "id": pa.array(table.ids, pa.string()),
        "source": pa.array(table.sources, pa.string()),
        "original_id": pa.array([own or None for own in table.original_ids] or [None] * len(table), pa.string()),
    }
    for name, column in table.columns.items():
        stored = column.map_values(lambda v: v.astype(np.int32)) if name == "input_ids" else column
        arrays[name] = stored.to_arrow()
    return pa.table(arrays)


def _encoded(metadata: Mapping[str, object]) -> bytes:
    return json.dumps(dict(metadata), sort_keys=True).encode()


def is_table(path: Path | str) -> bool:
    """Whether the file is a Parquet table of per-token columns, as ``write_table`` writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError):
        return False
    return {"input_ids", "is_response"} <= set(names)


def read_table(path: Path | str) -> TokenTable:
    """Read a whole table. Raises TableError naming the file and what is missing or damaged."""
    with _opened(path) as file:
        with _readable(path):
            stored = file.read()
        return _from_arrow(stored, _token_columns(file), _metadata(file, path), str(path))


def iter_table(path: Path | str, columns: Sequence[str] | None = None) -> Iterator[TokenTable]:
    """The table row group by row group, in the memory of one; a table of no rows gives one part of none.

    ``columns``: names of the wanted columns, None for all; ``input_ids`` and ``is_response`` are always read. Each part
    has the metadata of the whole. Raises TableError as ``read_table`` does, and for a missing column.
    """
    with _opened(path) as file:
        there, metadata = _token_columns(file), _metadata(file, path)
        wanted = there if columns is None else list(dict.fromkeys(["input_ids", "is_response", *columns]))
        if missing := [name for name in wanted if name not in there]:
            raise TableError(f"{path}: this table has no column {missing[0]!r}; it has {', '.join(there)}")
        stored_names = [name for name in file.schema_arrow.names if name in ROW_COLUMNS or name in wanted]
        if file.num_row_groups == 0:
            yield _from_arrow(file.schema_arrow.empty_table(), wanted, metadata, str(path))
        for group in range(file.num_row_groups):
            with _readable(path):
                stored = file.read_row_group(group, columns=stored_names)
            where = f"{path}, row group {group}" if file.num_row_groups > 1 else str(path)
            yield _from_arrow(stored, wanted, metadata, where)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The metadata of a table, read without its rows. Raises TableError naming the file."""
    with _opened(path) as file:
        return _metadata(file, path)


@contextmanager
def _opened(path: Path | str) -> Iterator[pq.ParquetFile]:
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise TableError(f"{path}: no such file; `tokenclean score` writes one")
    with _readable(path):
        file = pq.ParquetFile(path)
    with file:
        names = file.schema_arrow.names
        if missing := {"id", "source", "input_ids", "is_response"} - set(names):
            raise TableError(f"{path}: no column {', '.join(sorted(missing))}; `tokenclean score` writes such a table")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise TableError(f"{path}: more than one column {', '.join(map(repr, twice))}; keep one of that name")
        yield file


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({error})") from error


def _token_columns(file: pq.ParquetFile) -> list[str]:
    return [name for name in file.schema_arrow.names if name not in ROW_COLUMNS]


def _metadata(file: pq.ParquetFile, path: Path | str) -> dict[str, Any]:
    # The copy in the Arrow schema may be older: it is written with the first row group, this one with the last.
    stored = file.metadata.metadata or {}
    try:
        return json.loads(stored.get(_METADATA_KEY, b"{}"))
    except ValueError as error:
        raise TableError(f"{path}: its metadata is not JSON ({error})") from error


def _from_arrow(stored: pa.Table, names: Sequence[str], metadata: Mapping[str, object], where: str) -> TokenTable:
    ids, sources = (tuple(stored.column(name).to_pylist()) for name in ("id", "source"))
    own = stored.column("original_id").to_pylist() if "original_id" in stored.column_names else []
    original_ids = tuple(text or "" for text in own) if any(own) else ()
    try:
        columns = {name: _read_column(name, stored.column(name)) for name in names}
        return TokenTable(ids, sources, columns, metadata, original_ids)
    except TableError as error:
        raise TableError(f"{where}: {error}") from error


def _read_column(name: str, stored: pa.ChunkedArray) -> Ragged:
    try:
        column = Ragged.from_arrow(stored)
    except ValueError as error:
        raise TableError(f"column {name!r}: {error}") from error
    dtype, kinds = _COLUMN_DTYPES.get(name, (column.values.dtype, "biuf"))
    if column.values.dtype.kind not in kinds:
        raise TableError(f"column {name!r}: expected {np.dtype(dtype)} values, found {stored.type}")
    return column.with_values(column.values.astype(dtype, copy=False))


def write_column(column: Ragged, name: str, path: Path) -> None:
    """Write one per-token column as Parquet (``list``, zstd), atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: column.to_arrow()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, **_write_options(table.schema))


def _write_options(schema: pa.Schema) -> dict[str, Any]:
    """zstd, and a dictionary of the values for columns whose values repeat, which pyarrow wants by their paths. One of
    losses or scores, which hardly do, would take more than half as much again as the values."""
    import pyarrow as pa

    def path(field: pa.Field) -> str | None:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        value = field.type.value_type if is_list else field.type
        return None if pa.types.is_floating(value) else f"{field.name}.list.element" if is_list else field.name

    repeated = [found for found in map(path, schema) if found is not None]
    return {"compression": "zstd", "use_dictionary": repeated}


def read_column(name: str, path: Path) -> Ragged:
    """Read what ``write_column`` wrote. Raises TableError naming the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return Ragged.from_arrow(pq.read_table(path, columns=[name]).column(name))
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise TableError(f"{path}: cannot read column {name!r} ({error})") from error
