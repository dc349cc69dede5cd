"""Per-token columns on disk: one Parquet file, a row a conversation, that every stage reads and adds to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.tokens.tokenize import TokenizedPool

_METADATA_KEY = b"tokenclean"
_COLUMN_DTYPES = {"input_ids": np.int64, "is_response": np.bool_, "is_kept": np.bool_}


@dataclass(frozen=True)
class TokenTable:
    """Rows with per-token columns.

    ``ids``/``sources``: one a row. ``columns``: name to Ragged, all with equal offsets; always ``input_ids`` (int64)
    and ``is_response`` (bool), then ``base_loss``, ``reference_loss``, ``score`` (float32, nats, NaN off the
    response), ``is_kept`` (bool), ``weight`` (float32) as stages add them. ``metadata``: how it was made.
    """

    ids: tuple[str, ...]
    sources: tuple[str, ...]
    columns: Mapping[str, Ragged]
    metadata: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of_tokens(cls, tokens: TokenizedPool, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """A table of a tokenized pool and further columns aligned with it."""
        everything = {"input_ids": tokens.input_ids, "is_response": tokens.is_response, **columns}
        for name, column in columns.items():
            try:
                tokens.input_ids.check_aligned(column)
            except ValueError as error:
                raise TableError(f"column {name!r}: {error}") from error
        return cls(tokens.ids, tokens.sources, everything, metadata)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Ragged:
        if name not in self.columns:
            raise TableError(f"this table has no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def with_columns(self, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """The same rows with further or replaced columns and metadata."""
        return TokenTable(
            self.ids, self.sources, {**self.columns, **columns}, {**self.metadata, **metadata}
        )


def write_table(table: TokenTable, path: Path) -> None:
    """Write the table as Parquet (zstd), under a temporary name first, then renamed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tokenclean.store import atomic_path

    arrays: dict[str, pa.Array] = {"id": pa.array(table.ids, pa.string()), "source": pa.array(table.sources, pa.string())}
    for name, column in table.columns.items():
        stored = column.map_values(lambda v: v.astype(np.int32)) if name == "input_ids" else column
        arrays[name] = stored.to_arrow()
    schema_metadata = {_METADATA_KEY: json.dumps(dict(table.metadata), sort_keys=True).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(arrays).replace_schema_metadata(schema_metadata), temporary, compression="zstd")


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
            column = Ragged.from_arrow(stored.column(name))
        except ValueError as error:
            raise TableError(f"{path}: column {name!r}: {error}") from error
        dtype = _COLUMN_DTYPES.get(name)
        columns[name] = column if dtype is None else column.map_values(lambda v, d=dtype: v.astype(d))
        try:
            columns["input_ids"].check_aligned(columns[name])
        except ValueError as error:
            raise TableError(f"{path}: column {name!r}: {error}") from error
    metadata = json.loads((stored.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    ids, sources = (tuple(stored.column(name).to_pylist()) for name in ("id", "source"))
    return TokenTable(ids, sources, columns, metadata)
