"""The canonical cleaned data set: one Parquet file that every trainer's form is derived from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.store import atomic_path
from tokenclean.token_table import TokenTable

if TYPE_CHECKING:
    import pyarrow as pa

UNTRAINED = -100  # the label that every trainer's cross-entropy ignores
_METADATA_KEY = b"tokenclean"
_VERSION = 1
_ROWS_A_GROUP = 1000
_LENGTH_STEP = 8  # maximum lengths are rounded up to this many tokens
_COLUMN_TYPES = {
    "input_ids": "list<int32>",
    "attention_mask": "list<int8>",
    "labels": "list<int64>",
    "completion_mask": "list<int8>",
    "token_weight": "list<float>",
    "id": "string",
    "source": "string",
}
_ORIGINAL_ID = "original_id"  # the row's own id, null where it has none; files of older versions lack the column


@dataclass(frozen=True)
class SourceCounts:
    """One source. ``rows``: rows with at least one token that is kept or unlearned; ``dropped_rows``: rows with none,
    which are left out;
    ``tokens``: all tokens in ``rows``; ``response_tokens``: training targets before cleaning, dropped rows included;
    ``kept_tokens``: training targets after cleaning."""

    source: str
    rows: int
    dropped_rows: int
    tokens: int
    response_tokens: int
    kept_tokens: int


@dataclass(frozen=True)
class CleanedCounts:
    """All sources, in the order of their names."""

    sources: tuple[SourceCounts, ...]

    @property
    def total(self) -> SourceCounts:
        """The sums over all sources, named ``all``."""
        names = [field.name for field in fields(SourceCounts)][1:]
        return SourceCounts("all", *(sum(getattr(source, name) for source in self.sources) for name in names))


@dataclass(frozen=True)
class CleanedDataset:
    """A canonical file in memory.

    ``rows``: Arrow table with the columns of ``write_cleaned``. ``counts``: what was kept and dropped.
    ``dropped_ids``: ids of the rows left out because none of their tokens is trained. ``metadata``: from the table of
    tokens it was made from.
    """

    path: Path
    rows: pa.Table
    counts: CleanedCounts
    dropped_ids: tuple[str, ...]
    metadata: Mapping[str, Any]

    def column(self, name: str) -> Ragged:
        """A per-token column."""
        return Ragged.from_arrow(self.rows.column(name))

    @property
    def longest_row_tokens(self) -> int:
        """Tokens of the longest row."""
        return int(self.column("input_ids").lengths.max())

    @property
    def max_length(self) -> int:
        """The maximum length a trainer must be given so that it cuts no row: the longest row, rounded up to eights."""
        return round_up_length(self.longest_row_tokens)

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing was cleaned away: every response token is a target, with the weight 1."""
        total, weights = self.counts.total, self.column("token_weight").values
        return total.kept_tokens == total.response_tokens and bool(np.isin(weights, (0, 1)).all())

    def write_row_ids(self, path: Path) -> None:
        """Write a CSV with the number (from 0), id, own id and source of every row, in the order of the dataset."""
        import csv

        names = [name for name in ("id", _ORIGINAL_ID, "source") if name in self.rows.column_names]
        rows = self.rows.select(names).to_pylist()
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ("row", "id", _ORIGINAL_ID, "source"))
            writer.writeheader()
            writer.writerows({"row": number, **row} for number, row in enumerate(rows))

    def write_columns(self, names: Sequence[str], path: Path, *, with_counts: bool = False) -> None:
        """Write these columns as Parquet.

        ``with_counts`` adds counts and dropped ids, but not the table's metadata, which may hold paths of this machine.
        """
        import pyarrow.parquet as pq

        cleaned = _metadata(self.counts, self.dropped_ids, {}) if with_counts else None
        selected = self.rows.select(list(names)).replace_schema_metadata(cleaned)
        with atomic_path(path) as temporary:
            pq.write_table(selected, temporary, compression="zstd", row_group_size=_ROWS_A_GROUP)


def round_up_length(tokens: int) -> int:
    """A maximum length for rows of at most this many tokens: rounded up to eights."""
    return -(-tokens // _LENGTH_STEP) * _LENGTH_STEP


def write_cleaned(table: TokenTable, path: Path | str) -> CleanedCounts:
    """Write the cleaned tokens of a table as Parquet (zstd) and return what was kept and dropped.

    The table's ``weight`` (float32) counts where it has one, else ``is_kept`` (bool) as 1 and 0, times the data's
    ``loss_weight``. Columns, all lists of one row's length: ``input_ids`` int32; ``attention_mask`` int8, all 1;
    ``labels`` int64, the id where the weight is above 0, else −100; ``completion_mask`` int8, 1 where there is a label;
    ``token_weight`` float32, below 0 for a token to unlearn; then ``id``, ``source`` and ``original_id`` (string, the
    row's own id or null). Rows with no weight other than 0 are left out, counted, and their ids listed in the file's
    metadata beside the table's.

    Raises TableError for a table with neither column, with nothing to train at all, or with a weight that no trainer
    can use: NaN, infinite, on a row's first token (which has no loss), or above 0 outside a response.
    """
    import pyarrow.parquet as pq

    weights = _checked_weights(table)
    kept_tokens = weights.map_values(lambda values: values > 0).row_sums().astype(np.int64)
    is_trained = weights.map_values(lambda values: values != 0).row_sums() > 0
    chosen = np.flatnonzero(is_trained)
    if not len(chosen):
        raise TableError(f"no token of the {len(table):,} rows is kept, so there is nothing to train on or export")
    counts = _count_sources(table, kept_tokens, is_trained)
    dropped = [table.ids[row] for row in np.flatnonzero(~is_trained)]
    metadata = _metadata(counts, dropped, table.metadata)
    schema = _rows(table, weights, chosen[:0]).schema.with_metadata(metadata)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start in range(0, len(chosen), _ROWS_A_GROUP):
            writer.write_table(_rows(table, weights, chosen[start : start + _ROWS_A_GROUP]))
    return counts


def read_cleaned(path: Path | str) -> CleanedDataset:
    """Read what ``write_cleaned`` wrote. Raises TableError naming the file and the column or row that is wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise TableError(f"{path}: no such file; `tokenclean run` and `tokenclean select` write a cleaned data set")
    try:
        rows = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({error})") from error
    _check_columns(rows, path)
    try:
        stored = json.loads((rows.schema.metadata or {})[_METADATA_KEY])
        version = stored["cleaned"]["version"]
        counts = CleanedCounts(tuple(SourceCounts(**source) for source in stored["cleaned"]["sources"]))
        dropped = tuple(stored["cleaned"]["dropped_ids"])
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(f"{path}: not the metadata of a cleaned data set ({error!r}); write it again") from error
    if version != _VERSION:
        raise TableError(f"{path}: written in form {version}, expected {_VERSION}; write it with this tokenclean")
    if counts.total.rows != len(rows):
        counted = f"{counts.total.rows:,}"
        raise TableError(f"{path}: holds {len(rows):,} rows, but its metadata counts {counted}; write it again")
    return CleanedDataset(path, rows, counts, dropped, stored.get("table", {}))


def _checked_weights(table: TokenTable) -> Ragged:
    if "weight" in table.columns:
        weights = table["weight"].map_values(lambda values: values.astype(np.float32))
    elif "is_kept" in table.columns:
        weights = table.weighed(table["is_kept"].map_values(lambda values: values.astype(np.float32)))
    else:
        raise TableError(
            f"this table has neither is_kept nor weight; it has {', '.join(table.columns)}. "
            "`tokenclean select` adds is_kept"
        )
    values = weights.values
    is_first = np.zeros(len(values), dtype=bool)
    is_first[weights.offsets[:-1][weights.lengths > 0]] = True
    faults = (
        (~np.isfinite(values), "a weight must be finite"),
        ((values != 0) & is_first, "the first token of a row has no loss, since nothing is before it"),
        ((values > 0) & ~table["is_response"].values, "a token outside the response is not a training target"),
    )
    for wrong, reason in faults:
        if wrong.any():
            token = int(np.flatnonzero(wrong)[0])
            row, position = weights.locate(token)
            raise TableError(
                f"row {table.ids[row]!r}, token {position}: weight {values[token]:g}, but {reason}; "
                f"{int(wrong.sum()):,} such tokens. Correct the column that the labels came from"
            )
    return weights


def _count_sources(table: TokenTable, kept_tokens: np.ndarray, is_left: np.ndarray) -> CleanedCounts:
    """Count a table whose N rows keep ``kept_tokens`` tokens each, int64 (N,), and are not left out, bool (N,)."""
    names = sorted(set(table.sources))
    numbers = {name: number for number, name in enumerate(names)}
    source_N = np.array([numbers[source] for source in table.sources], dtype=np.int64)
    columns = (is_left, ~is_left, table["input_ids"].lengths * is_left, table["is_response"].row_sums(), kept_tokens)
    counts = [np.bincount(source_N, column, len(names)).astype(np.int64).tolist() for column in columns]
    return CleanedCounts(tuple(SourceCounts(name, *own) for name, *own in zip(names, *counts, strict=True)))


def _rows(table: TokenTable, weights: Ragged, chosen: np.ndarray) -> pa.Table:
    import pyarrow as pa

    ids, weight = table["input_ids"].take(chosen), weights.take(chosen)
    is_kept = weight.values > 0
    offsets = pa.array(ids.offsets.astype(np.int32))
    columns = {
        "input_ids": ids.values.astype(np.int32),
        "attention_mask": np.ones(len(ids.values), np.int8),
        "labels": np.where(is_kept, ids.values, UNTRAINED).astype(np.int64),
        "completion_mask": is_kept.astype(np.int8),
        "token_weight": weight.values,
    }
    arrays: dict[str, pa.Array] = {
        name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in columns.items()
    }
    arrays["id"] = pa.array([table.ids[row] for row in chosen], pa.string())
    arrays["source"] = pa.array([table.sources[row] for row in chosen], pa.string())
    own = table.original_ids or ("",) * len(table)
    arrays[_ORIGINAL_ID] = pa.array([own[row] or None for row in chosen], pa.string())
    return pa.table(arrays)


def _metadata(counts: CleanedCounts, dropped: Sequence[str], table: Mapping[str, object]) -> dict[bytes, bytes]:
    cleaned = {"version": _VERSION, "sources": [asdict(s) for s in counts.sources], "dropped_ids": list(dropped)}
    return {_METADATA_KEY: json.dumps({"cleaned": cleaned, "table": dict(table)}, sort_keys=True).encode()}


def _check_columns(rows: pa.Table, path: Path) -> None:
    columns: dict[str, Ragged] = {}
    for name, expected in _COLUMN_TYPES.items():
        if name not in rows.column_names:
            raise TableError(f"{path}: no column {name!r}; a cleaned data set has {', '.join(_COLUMN_TYPES)}")
        column = rows.column(name)
        kind, is_list = str(column.type), expected.startswith("list")
        if kind.replace("element: ", "").replace("item: ", "") != expected:
            raise TableError(f"{path}: column {name!r} holds {kind}, expected {expected}")
        if column.null_count or (is_list and any(chunk.flatten().null_count for chunk in column.chunks)):
            raise TableError(f"{path}: column {name!r} holds nulls; every row and token needs a value")
        if is_list:
            columns[name] = Ragged.from_arrow(column)
    if not len(rows):
        raise TableError(f"{path}: holds no row, so there is nothing to export")
    ids, names = columns["input_ids"], rows.column("id")
    for name, column in columns.items():
        different = np.flatnonzero(column.lengths != ids.lengths)
        if len(different):
            row = int(different[0])
            raise TableError(
                f"{path}: row {names[row].as_py()!r}: {name} has {column.lengths[row]} values "
                f"for {ids.lengths[row]} input_ids"
            )
    is_kept = columns["token_weight"].values > 0
    expected_values = {
        "attention_mask": np.ones_like(ids.values),
        "labels": np.where(is_kept, ids.values, UNTRAINED),
        "completion_mask": is_kept,
    }
    for name, expected_value in expected_values.items():
        wrong = np.flatnonzero(columns[name].values != expected_value)
        if len(wrong):
            row = names[ids.row_of_value()[wrong[0]]].as_py()
            raise TableError(f"{path}: row {row!r}: {name} does not follow from input_ids and token_weight")
