"""Ratings of a pool's conversations, read from a file or asked of a rater, and the classes that DS² works with."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, SupportsFloat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenclean.ds2.rating_prompt import HIGHEST_RATING, LOWEST_RATING, Rating
from tokenclean.errors import RecipeError, TableError
from tokenclean.pool.reading import read_records
from tokenclean.recipe import RatingsSettings
from tokenclean.store import atomic_path

logger = logging.getLogger(__name__)

CLASSES = 6
"""Classes 0 … 5: ratings up to 4 are one class, and so are those from 9 on."""

Scale = Literal["ratings", "classes"]
RANGES: dict[Scale, tuple[int, int]] = {"ratings": (LOWEST_RATING, HIGHEST_RATING), "classes": (0, CLASSES - 1)}
"""Lowest and highest value of a scale: a rater's own ratings, or the classes that DS² makes of them."""

_LOWEST, _HIGHEST = 4, 9  # ratings of the first and the last class
_FURTHER_SCALES = ("rarity", "complexity", "informativeness")
_NO_RATING = ("", "nan", "null", "none", "na")
_SHOWN = 3

_Key = str | tuple[str, int]
"""What identifies a row: its id in the pool, or its source (empty where there is only one) and row number from 1."""


@dataclass(frozen=True, eq=False)
class Ratings:
    """One rater's ratings of N conversations.

    ``ids``: row ids in the order of all arrays. ``rater``: its name. ``overall``: float64 (N,), whole numbers on the
    ``scale`` (``ratings`` 1 to 10, ``classes`` 0 to 5), NaN where no answer could be read. ``further``: rarity,
    complexity and informativeness, the same on 1 to 10, where the rater was asked for them.
    """

    ids: tuple[str, ...]
    rater: str
    overall: np.ndarray
    scale: Scale = "ratings"
    further: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_parsed(self) -> np.ndarray:
        """bool (N,): True where there is a rating."""
        return ~np.isnan(self.overall)

    @property
    def classes(self) -> np.ndarray:
        """Class of each row, int64 (N,): clip(overall, 4, 9) − 4, or ``overall`` where it is a class already; 0 where
        no answer could be read."""
        values = self.overall if self.scale == "classes" else np.clip(self.overall, _LOWEST, _HIGHEST) - _LOWEST
        return np.nan_to_num(values, nan=0.0).astype(np.int64)


def ratings_of(ids: Sequence[str], rater: str, answers: Sequence[Rating | None]) -> Ratings:
    """Ratings from answers in the order of ``ids``, None for one that could not be read."""
    columns = {
        name: np.array([np.nan if a is None else getattr(a, name) for a in answers], dtype=np.float64)
        for name in ("overall", *_FURTHER_SCALES)
    }
    return Ratings(tuple(ids), rater, columns.pop("overall"), further=columns)


def write_ratings(path: Path | str, ratings: Ratings, metadata: Mapping[str, object]) -> None:
    """Write Parquet with the columns ``id`` (string), ``overall`` and the further scales (int8, null where no answer
    could be read) and ``is_parsed`` (bool). The file's metadata hold rater, scale and ``metadata`` as JSON.

    Raises RunFolderError where the file cannot be written.
    """
    columns = {"id": pa.array(ratings.ids, pa.string())}
    for name, values in {"overall": ratings.overall, **ratings.further}.items():
        columns[name] = pa.array(np.nan_to_num(values).astype(np.int8), mask=np.isnan(values))
    columns["is_parsed"] = pa.array(ratings.is_parsed)
    stored = json.dumps({**metadata, "rater": ratings.rater, "scale": ratings.scale}, sort_keys=True)
    table = pa.table(columns).replace_schema_metadata({b"tokenclean": stored.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def load_ratings(settings: RatingsSettings, ids: Sequence[str]) -> Ratings:
    """Ready-made ratings of the pool rows ``ids`` from CSV, JSON lines or Parquet (as ``read_records`` reads them).

    A row of the file belongs to the pool row whose id (``source:number:hash``) is in ``id_column``, or to the one whose
    place in its own source file is in ``number_column``, counted from ``numbers_from``: lines of JSON lines (blank ones
    count), rows of a table. With several sources in the pool, ``source_column`` says whose number it is. Rows that the
    pool lacks are skipped. An empty cell, null or NaN is a rating that could not be read; a warning counts them.

    Raises PoolError for a file that cannot be read; RecipeError for columns that do not say which row is meant;
    TableError, naming file, row and column, for a missing column, a key that occurs twice, a value off the scale, and
    for pool rows without a row in the file.
    """
    path, join = Path(settings.path).expanduser(), _Join(settings)
    wanted = join.keys_of_pool(ids)
    values = np.full(len(ids), np.nan)
    lines: dict[_Key, int] = {}
    for row in _rows(path):
        key = join.key_of_row(row)
        if key in lines:
            raise TableError(
                f"{path}:{row.line}: {join.describe(key)} was rated before, in line {lines[key]}; keep one rating per "
                "row, or put another rater's into a column of its own"
            )
        lines[key] = row.line
        value = _rating(row, settings)
        if (index := wanted.get(key)) is not None:
            values[index] = value
    if missing := [(key, index) for key, index in wanted.items() if key not in lines]:
        shown = "".join(f"\n  {ids[index]} ({join.describe(key)})" for key, index in missing[:_SHOWN])
        raise TableError(
            f"{path}: rates {len(wanted) - len(missing):,} of the pool's {len(wanted):,} rows; expected one row for "
            f"each of them. Add the missing ones (a cell may be empty), or remove them from the pool. The first:{shown}"
        )
    if unread := int(np.isnan(values).sum()):
        logger.warning(
            "%s: %d of %d rows have no %s; they count as class 0", path, unread, len(ids), settings.rating_column
        )
    return Ratings(tuple(ids), settings.name, values, settings.scale)


@dataclass(frozen=True)
class _Row:
    """A row of a ratings file and its line there."""

    path: Path
    line: int
    cells: Mapping[str, object]

    def cell(self, column: str) -> object:
        if column not in self.cells:
            close = get_close_matches(column, list(self.cells), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            columns = ", ".join(self.cells) or "none"
            raise TableError(f"{self.path}:{self.line}: has no column {column!r}; it has {columns}{hint}")
        return self.cells[column]

    def unexpected(self, column: str, expected: str, hint: str = "") -> TableError:
        """The error for a cell that does not hold what is expected."""
        return TableError(f"{self.path}:{self.line}: {column}: expected {expected}, found {self.cells[column]!r}{hint}")


def _rows(path: Path) -> Iterator[_Row]:
    for record in read_records(path):
        if record.row is None:
            raise TableError(f"{path}:{record.line}: cannot be read: {record.fault}; correct or remove this row")
        yield _Row(path, record.line, record.row)


class _Join:
    """Finds the pool row that a row of the file rates, by id or by row number."""

    def __init__(self, settings: RatingsSettings) -> None:
        self.path, self.id_column = settings.path, settings.id_column or "id"
        self.number_column, self.source_column = settings.number_column, settings.source_column
        self.numbers_from = settings.numbers_from
        problems = []
        if settings.id_column is not None and self.number_column is not None:
            problems.append(
                "name one column that says which row is rated: either id_column (the pool's own ids) or number_column "
                "(row numbers)"
            )
        if self.number_column is None and self.source_column is not None:
            problems.append("source_column needs number_column; leave it out")
        if problems:
            raise RecipeError(problems, f"ratings {self.path}")

    def keys_of_pool(self, ids: Sequence[str]) -> dict[_Key, int]:
        """Key -> index of each row of the pool."""
        keys: dict[_Key, int] = {}
        for index, identity in enumerate(ids):
            key = identity if self.number_column is None else self._numbered(identity)
            if key in keys:
                source = "" if self.source_column is not None else "name the source_column, or "
                remedy = "each row once" if self.number_column is None else f"{source}join by id_column"
                raise TableError(
                    f"{self.path}: the pool's rows {ids[keys[key]]!r} and {identity!r} are both {self.describe(key)}; "
                    f"{remedy}"
                )
            keys[key] = index
        return keys

    def key_of_row(self, row: _Row) -> _Key:
        if self.number_column is None:
            identity = row.cell(self.id_column)
            if not isinstance(identity, str) or not identity:
                raise row.unexpected(self.id_column, "the id of a row")
            return identity
        number = _whole_number(row.cell(self.number_column))
        if number is None or number < self.numbers_from:
            raise row.unexpected(self.number_column, f"a row number from {self.numbers_from} on")
        source = "" if self.source_column is None else row.cell(self.source_column)
        if not isinstance(source, str):
            raise row.unexpected(self.source_column or "", "a source name")
        return source, number - self.numbers_from + 1

    def describe(self, key: _Key) -> str:
        """The key as the file writes it."""
        if isinstance(key, str):
            return f"row {key!r}"
        source, number = key
        of_source = f" of source {source!r}" if source else ""
        return f"row number {number - 1 + self.numbers_from}{of_source}"

    def _numbered(self, identity: str) -> _Key:
        source, *rest = identity.rsplit(":", 2)
        if len(rest) != 2 or not (rest[0].isascii() and rest[0].isdigit()):
            raise TableError(
                f"{self.path}: the id {identity!r} of the pool holds no row number (source:number:hash); join by "
                "id_column"
            )
        return source if self.source_column is not None else "", int(rest[0])


def _rating(row: _Row, settings: RatingsSettings) -> float:
    """A whole number on the scale; NaN for an empty cell. Raises TableError."""
    cell, scale = row.cell(settings.rating_column), settings.scale
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _NO_RATING):
        return math.nan
    low, high = RANGES[scale]
    number = _whole_number(cell)
    if number is not None and low <= number <= high:
        return float(number)
    other: Scale = "classes" if scale == "ratings" else "ratings"
    other_low, other_high = RANGES[other]
    hint = ""
    if number is not None and other_low <= number <= other_high:
        hint = f"; if the column holds {other} ({other_low} to {other_high}), set scale: {other}"
    raise row.unexpected(settings.rating_column, f"a whole number from {low} to {high} (scale: {scale})", hint)


def _whole_number(value: object) -> int | None:
    """Also from a float or a text such as 7.0, to which tables with gaps convert integers; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, SupportsFloat)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
