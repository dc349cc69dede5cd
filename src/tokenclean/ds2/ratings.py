"""Ratings of a pool's conversations: those that came ready-made in a file, and those that were asked for."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenclean.ds2.rating_classes import CLASSES, classes_of
from tokenclean.ds2.rating_prompt import HIGHEST_RATING, LOWEST_RATING, Rating
from tokenclean.errors import RecipeError, TableError
from tokenclean.pool.reading import Record, read_records
from tokenclean.store import atomic_path

logger = logging.getLogger(__name__)

Scale = Literal["ratings", "classes"]
RANGES: dict[Scale, tuple[int, int]] = {"ratings": (LOWEST_RATING, HIGHEST_RATING), "classes": (0, CLASSES - 1)}
"""Lowest and highest value of a scale: ratings as a rater gives them, or the classes that DS² makes of them."""
FURTHER_SCALES = ("rarity", "complexity", "informativeness")

_METADATA_KEY = b"tokenclean"
_NO_RATING = ("", "nan", "null", "none", "na")
_SHOWN = 3

_Key = str | tuple[str, int]
"""What a row of a file is known by: a pool id, or a source (empty where there is one only) and a row number from 1."""


@dataclass(frozen=True, eq=False)
class Ratings:
    """One rater's ratings of N conversations.

    ``ids``: of the pool's rows, in the order of all arrays. ``rater``: its name. ``overall``: float64 (N,), whole
    numbers on the ``scale`` (``ratings`` 1 to 10, ``classes`` 0 to 5), NaN where no answer could be read. ``rarity``,
    ``complexity``, ``informativeness``: the same on 1 to 10, or None where they were not asked for.
    """

    ids: tuple[str, ...]
    rater: str
    overall: np.ndarray
    scale: Scale = "ratings"
    rarity: np.ndarray | None = None
    complexity: np.ndarray | None = None
    informativeness: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, values in (("overall", self.overall), *self.further.items()):
            if values.shape != (len(self.ids),):
                raise ValueError(f"{name} has shape {values.shape}, expected ({len(self.ids)},), one value an id")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_parsed(self) -> np.ndarray:
        """bool (N,): True where there is a rating."""
        return ~np.isnan(self.overall)

    @property
    def further(self) -> dict[str, np.ndarray]:
        """The scales beside ``overall`` that there are."""
        values = {name: getattr(self, name) for name in FURTHER_SCALES}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def classes(self) -> np.ndarray:
        """Class of each row, int64 (N,): clip(overall, 4, 9) − 4, or ``overall`` where it is a class already; 0 where
        no answer could be read."""
        if self.scale == "ratings":
            return classes_of(self.overall)
        return np.nan_to_num(self.overall, nan=0.0).astype(np.int64)


def ratings_of(ids: Sequence[str], rater: str, answers: Sequence[Rating | None]) -> Ratings:
    """The ratings of answers in the order of ``ids``, None for one that could not be read."""
    columns = {
        name: np.array([np.nan if a is None else getattr(a, name) for a in answers], dtype=np.float64)
        for name in ("overall", *FURTHER_SCALES)
    }
    return Ratings(tuple(ids), rater, columns.pop("overall"), "ratings", **columns)


def write_ratings(path: Path | str, ratings: Ratings, metadata: Mapping[str, Any] | None = None) -> None:
    """Write Parquet with the columns ``id`` (string), ``overall`` and the further scales (int8, null where no answer
    could be read) and ``is_parsed`` (bool); rater, scale and ``metadata`` (JSON-able) stand in the file's metadata.

    Raises RunFolderError where the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    missing = ~ratings.is_parsed
    columns: dict[str, Any] = {"id": pa.array(ratings.ids, pa.string())}
    for name, values in {"overall": ratings.overall, **ratings.further}.items():
        columns[name] = pa.array(np.nan_to_num(values).astype(np.int8), mask=np.isnan(values))
    columns["is_parsed"] = pa.array(~missing)
    stored = {**(metadata or {}), "rater": ratings.rater, "scale": ratings.scale}
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(stored, sort_keys=True).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_ratings(path: Path | str, ids: Sequence[str]) -> Ratings:
    """What ``write_ratings`` wrote, for the pool rows ``ids`` in their order; rows that these lack are left out.

    Raises TableError for another file and as ``load_ratings`` does.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = json.loads((pq.read_schema(path).metadata or {})[_METADATA_KEY])
        rater, scale = str(stored["rater"]), stored["scale"]
        if scale not in RANGES:
            raise ValueError(f"scale {scale!r}")
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file; `tokenclean rate` writes one") from error
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path}: not a file of ratings that tokenclean wrote ({error!r}); ratings of another make are read with "
            "their columns and their scale named"
        ) from error
    names = [name for name in FURTHER_SCALES if name in pq.read_schema(path).names]
    overall = load_ratings(path, ids, rating_column="overall", scale=scale, id_column="id", rater=rater)
    columns = {
        name: load_ratings(path, ids, rating_column=name, scale="ratings", id_column="id").overall for name in names
    }
    return replace(overall, **columns)


def load_ratings(
    path: Path | str,
    ids: Sequence[str],
    *,
    rating_column: str,
    scale: Scale,
    id_column: str | None = None,
    number_column: str | None = None,
    numbers_from: Literal[0, 1] | None = None,
    source_column: str | None = None,
    rater: str | None = None,
) -> Ratings:
    """Ready-made ratings of the pool rows ``ids`` from CSV, JSON lines or Parquet (as ``read_records`` reads them).

    ``scale``: what the column holds, ``ratings`` (1 to 10) or ``classes`` (0 to 5); nothing guesses it. A row of the
    file belongs to the pool row that ``id_column`` names (``source:number:hash``), or to the one that stood at the
    place of ``number_column`` in its own file, counted from ``numbers_from``: lines of JSON lines (blank ones count),
    rows of a table. With several sources in the pool, ``source_column`` says whose number it is. Rows that the pool
    lacks are passed over. An empty cell, null or NaN is a rating that could not be read, and a warning counts them.
    ``rater``: its name, by default the column's.

    Raises PoolError for a file that cannot be read; RecipeError for columns that do not say which row is meant;
    TableError, naming file, row and column, for a missing column, a key twice, a value off the scale, and for pool
    rows without a row in the file.
    """
    path = Path(path)
    join = _Join(path, id_column, number_column, numbers_from, source_column)
    if scale not in RANGES:
        raise RecipeError(f"scale: expected ratings (1 to 10) or classes (0 to 5), found {scale!r}", "ratings")
    wanted = join.keys_of_pool(ids)
    values = np.full(len(ids), np.nan)
    lines: dict[_Key, int] = {}
    for record, row in _rows(path):
        key = join.key_of_row(record, row)
        if key in lines:
            raise TableError(
                f"{path}:{record.line}: {join.describe(key)} was rated before, in line {lines[key]}; keep one rating a "
                "row, or put another rater's into a column of its own"
            )
        lines[key] = record.line
        value = _read_value(path, record, _cell(path, record, row, rating_column), rating_column, scale)
        if (place := wanted.get(key)) is not None:
            values[place] = value
    _check_none_missing(path, ids, wanted, lines, join)
    if unread := int(np.isnan(values).sum()):
        logger.warning("%s: %d of %d rows have no %s; they count as class 0", path, unread, len(ids), rating_column)
    return Ratings(tuple(ids), rating_column if rater is None else rater, values, scale)


@dataclass(frozen=True)
class _Join:
    """By which columns the rows of a file find their rows of the pool."""

    path: Path
    id_column: str | None
    number_column: str | None
    numbers_from: int | None
    source_column: str | None

    def __post_init__(self) -> None:
        problems = []
        if (self.id_column is None) == (self.number_column is None):
            problems.append(
                "name the column that says which row a rating is of: either id_column (the pool's own ids) or "
                "number_column (row numbers)"
            )
        if self.number_column is not None and self.numbers_from not in (0, 1):
            problems.append(
                f"numbers_from: say whether {self.number_column!r} counts rows from 0 or from 1, found "
                f"{self.numbers_from!r}"
            )
        if self.number_column is None and (self.numbers_from is not None or self.source_column is not None):
            problems.append("numbers_from and source_column go with number_column; leave them out")
        if problems:
            raise RecipeError(problems, f"ratings {self.path}")

    def keys_of_pool(self, ids: Sequence[str]) -> dict[_Key, int]:
        """Key of each row of the pool, and its place."""
        keys: dict[_Key, int] = {}
        for place, identity in enumerate(ids):
            key = identity if self.id_column is not None else self._numbered(identity)
            if key in keys:
                ways = "" if self.source_column is not None else "name the source_column, or "
                remedy = "each row once" if self.id_column is not None else f"{ways}join by id_column"
                raise TableError(
                    f"{self.path}: the pool's rows {ids[keys[key]]!r} and {identity!r} are both {self.describe(key)}; "
                    f"{remedy}"
                )
            keys[key] = place
        return keys

    def key_of_row(self, record: Record, row: Mapping[str, Any]) -> _Key:
        """Key of a row of the file."""
        if self.id_column is not None:
            value = _cell(self.path, record, row, self.id_column)
            if not isinstance(value, str) or not value:
                raise TableError(f"{self._at(record, self.id_column)}: expected the id of a row, found {value!r}")
            return value
        assert self.number_column is not None
        assert self.numbers_from is not None
        value = _cell(self.path, record, row, self.number_column)
        number = _whole_number(value)
        if number is None or number < self.numbers_from:
            raise TableError(
                f"{self._at(record, self.number_column)}: expected a row number from {self.numbers_from} on, found "
                f"{value!r}"
            )
        source = "" if self.source_column is None else _cell(self.path, record, row, self.source_column)
        if not isinstance(source, str):
            raise TableError(f"{self._at(record, self.source_column or '')}: expected a source name, found {source!r}")
        return source, number - self.numbers_from + 1

    def describe(self, key: _Key) -> str:
        """The key in the file's own words."""
        if isinstance(key, str):
            return f"row {key!r}"
        source, number = key
        of_source = f" of source {source!r}" if source else ""
        return f"row number {number - 1 + (self.numbers_from or 0)}{of_source}"

    def _numbered(self, identity: str) -> _Key:
        source, *rest = identity.rsplit(":", 2)
        if len(rest) != 2 or not (rest[0].isascii() and rest[0].isdigit()):
            raise TableError(
                f"{self.path}: the id {identity!r} of the pool holds no row number (source:number:hash); join by "
                "id_column"
            )
        return source if self.source_column is not None else "", int(rest[0])

    def _at(self, record: Record, column: str) -> str:
        return f"{self.path}:{record.line}: {column}"


def _rows(path: Path) -> Iterator[tuple[Record, Mapping[str, Any]]]:
    for record in read_records(path.expanduser()):
        if record.row is None:
            raise TableError(f"{path}:{record.line}: cannot be read: {record.fault}; mend or remove this row")
        yield record, record.row


def _cell(path: Path, record: Record, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        close = get_close_matches(column, list(row), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TableError(f"{path}:{record.line}: has no column {column!r}; it has {', '.join(row) or 'none'}{hint}")
    return row[column]


def _read_value(path: Path, record: Record, cell: Any, column: str, scale: Scale) -> float:
    """A whole number on the scale; NaN for an empty cell. Raises TableError."""
    text = cell.strip().lower() if isinstance(cell, str) else cell
    if text is None or text in _NO_RATING or (isinstance(text, float) and math.isnan(text)):
        return math.nan
    low, high = RANGES[scale]
    number = _whole_number(cell)
    if number is None or not low <= number <= high:
        other: Scale = "classes" if scale == "ratings" else "ratings"
        hint = ""
        if number is not None and RANGES[other][0] <= number <= RANGES[other][1]:
            hint = f"; if the column holds {other} ({RANGES[other][0]} to {RANGES[other][1]}), give scale: {other}"
        raise TableError(
            f"{path}:{record.line}: {column}: expected a whole number from {low} to {high} (scale: {scale}), found "
            f"{cell!r}{hint}"
        )
    return float(number)


def _whole_number(value: Any) -> int | None:
    """Also of a float or text such as 7.0, which tables with gaps make of integers; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


def _check_none_missing(
    path: Path, ids: Sequence[str], wanted: Mapping[_Key, int], found: Mapping[_Key, int], join: _Join
) -> None:
    missing = [(key, place) for key, place in wanted.items() if key not in found]
    if missing:
        shown = "".join(f"\n  {ids[place]} ({join.describe(key)})" for key, place in missing[:_SHOWN])
        raise TableError(
            f"{path}: rates {len(wanted) - len(missing):,} of the pool's {len(wanted):,} rows; expected one row for "
            f"each of them. Add the missing ones (a cell may be empty), or take them out of the pool. The first:{shown}"
        )
