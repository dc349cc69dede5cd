"""Per-token columns on disk: one Parquet file, a row a conversation, that every stage reads and adds to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.store import atomic_path
from tokenclean.tokens.tokenize import TokenizedPool

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA_KEY = b"tokenclean"
# What a column is read as, and the numpy kinds it may be stored in; any other column holds numbers of any kind.
_COLUMN_DTYPES = {"input_ids": (np.int64, "iu"), "is_response": (np.bool_, "biu"), "is_kept": (np.bool_, "biu")}


@dataclass(frozen=True)
class TokenTable:
    """Rows with per-token columns.

    ``ids``/``sources``: one a row. ``columns``: name to Ragged, all with equal offsets; always ``input_ids`` (int64)
    and ``is_response`` (bool), then ``base_loss``, ``reference_loss``, ``score`` (float32, nats, NaN off the
    response), ``is_kept`` (bool), ``weight`` (float32) as stages add them. ``metadata``: how it was made.

    Raises TableError naming the column that is missing or does not fit the others.
    """

    ids: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, Ragged]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("input_ids", "is_response"):
            self[name]
        if not len(self.ids) == len(self.sources) == len(self["input_ids"]):
            counts = f"{len(self.ids)} ids, {len(self.sources)} sources and {len(self['input_ids'])} rows of input_ids"
            raise TableError(f"this table has {counts}; they must be as many")
        for name, column in self.columns.items():
            try:
                self["input_ids"].check_aligned(column)
            except ValueError as error:
                raise TableError(f"column {name!r}: {error}") from error

    @classmethod
    def of_tokens(cls, tokens: TokenizedPool, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """A table of a tokenized pool and further columns aligned with it."""
        everything = {"input_ids": tokens.input_ids, "is_response": tokens.is_response, **columns}
        return cls(tokens.ids, tokens.sources, everything, metadata)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Ragged:
        if name not in self.columns:
            raise TableError(f"this table has no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def with_columns(self, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """The same rows with further or replaced columns and metadata."""
        return TokenTable(self.ids, self.sources, {**self.columns, **columns}, {**self.metadata, **metadata})


def write_table(table: TokenTable, path: Path) -> None:
    """Write the table as Parquet (zstd), under a temporary name first, then renamed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, pa.Array] = {
        "id": pa.array(table.ids, pa.string()),
        "source": pa.array(table.sources, pa.string()),
    }
    for name, column in table.columns.items():
        stored = column.map_values(lambda v: v.astype(np.int32)) if name == "input_ids" else column
        arrays[name] = stored.to_arrow()
    schema_metadata = {_METADATA_KEY: json.dumps(dict(table.metadata), sort_keys=True).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(arrays).replace_schema_metadata(schema_metadata), temporary, compression="zstd")


def is_table(path: Path | str) -> bool:
    """Whether the file is a Parquet table of per-token columns that ``write_table`` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError):
        return False
    return {"input_ids", "is_response"} <= set(names)


def read_table(path: Path | str) -> TokenTable:
    """Read a table that ``write_table`` wrote. Raises TableError naming the file and what is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise TableError(f"{path}: no such file; `tokenclean score` writes one")
    try:
        stored = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({error})") from error
    missing = {"id", "source", "input_ids", "is_response"} - set(stored.column_names)
    if missing:
        raise TableError(f"{path}: no column {', '.join(sorted(missing))}; `tokenclean score` writes such a table")
    columns: dict[str, Ragged] = {}
    for name in stored.column_names:
        if name in ("id", "source"):
            continue
        try:
            columns[name] = _read_column(name, stored.column(name))
        except ValueError as error:
            raise TableError(f"{path}: column {name!r}: {error}") from error
    try:
        metadata = json.loads((stored.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    except ValueError as error:
        raise TableError(f"{path}: its metadata is not JSON ({error})") from error
    ids, sources = (tuple(stored.column(name).to_pylist()) for name in ("id", "source"))
    try:
        return TokenTable(ids, sources, columns, metadata)
    except TableError as error:
        raise TableError(f"{path}: {error}") from error


def _read_column(name: str, stored: pa.ChunkedArray) -> Ragged:
    column = Ragged.from_arrow(stored)
    dtype, kinds = _COLUMN_DTYPES.get(name, (column.values.dtype, "biuf"))
    if column.values.dtype.kind not in kinds:
        raise ValueError(f"expected {np.dtype(dtype)} values, found {stored.type}")
    return column.with_values(column.values.astype(dtype, copy=False))


def write_column(column: Ragged, name: str, path: Path) -> None:
    """Write one per-token column as Parquet (``list``, zstd), atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(pa.table({name: column.to_arrow()}), temporary, compression="zstd")


def read_column(name: str, path: Path) -> Ragged:
    """Read what ``write_column`` wrote. Raises TableError naming the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return Ragged.from_arrow(pq.read_table(path, columns=[name]).column(name))
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise TableError(f"{path}: cannot read column {name!r} ({error})") from error
