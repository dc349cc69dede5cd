"""Scores or weights of tokens that another tool has made, by the ids of their rows, as a strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.noise_removal import fractions_of, keep_best
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.errors import TableError
from tokenclean.pool.reading import read_records
from tokenclean.ragged import Ragged
from tokenclean.tokens.weight_spans import WeightSpan, weights_of_spans

KINDS = ("score", "weight", "spans")
_NAMED = 3  # ids that an error names


def given(context: RunContext) -> StrategyResult:
    """The scores or weights of the file ``cleaning.given``, trained from the base.

    Each row of the file (Parquet, JSON lines, and the other files of a pool) has ``id`` or ``original_id``, and one of
    ``KINDS``, the same in all rows: ``score``, a number a token, of which the top ``cleaning.proportion`` is kept;
    ``weight``, a number a token, or ``spans`` of ``{message, start, end, weight}``, which say what is trained, spans
    with weight 1 outside of them; of a row with spans and ``dropped: true`` nothing is trained, thoughts and tool calls
    included, which no span names. Other keys of rows and spans are not read. Numbers count at response tokens alone.
    Trusted rows need not be in the file, and rows that are held out or filtered may be.

    Raises TableError for a file that cannot be read so: counted and with the first ones, for training rows that are not
    in the file, and for ids that are in no row of the pool, unless ``pool.max_rows`` cuts the pool.
    """
    path = Path(context.recipe.cleaning.given or "").expanduser()
    records = _read(path)
    kind = _kind_of(path, records)
    matched = _match(path, records, context)
    full = context.tokens.is_response.map_values(lambda values: values.astype(np.float32))
    if kind == "score":
        return keep_best(context, "given", _numbers(path, kind, matched, full.map_values(lambda ones: ones * np.nan)))
    if kind == "weight":
        weights = _numbers(path, kind, matched, full)
        weights = weights.with_values(np.where(context.tokens.is_response.values, weights.values, 0))
    else:
        spans = [_spans(path, matched.get(row)) for row in range(len(context.tokens))]
        weights = weights_of_spans(context.tokens, spans, full)
        is_dropped = np.array([_is_dropped(path, matched.get(row)) for row in range(len(context.tokens))], dtype=bool)
        weights = weights.with_values(np.where(is_dropped[weights.row_of_value()], 0, weights.values))
    model = context.train("given", context.base, weights)
    kept = weights.map_values(lambda values: values > 0)
    return StrategyResult("given", model, kept, rounds=(model,), weights=fractions_of(weights))


def _read(path: Path) -> list[tuple[int, Mapping[str, object]]]:
    """The rows of the file with their lines."""
    found = []
    for record in read_records(path):
        if record.row is None:
            raise TableError(f"{path}:{record.line}: {record.fault}")
        found.append((record.line, record.row))
    if not found:
        raise TableError(f"{path}: holds no row of scores or weights")
    return found


def _kind_of(path: Path, records: Iterable[tuple[int, Mapping[str, object]]]) -> str:
    """Which of ``KINDS`` the rows hold."""
    kinds: dict[str, int] = {}
    for line, row in records:
        held = [kind for kind in KINDS if row.get(kind) is not None]
        if len(held) != 1:
            raise TableError(f"{path}:{line}: expected one of {', '.join(KINDS)}, found {' and '.join(held) or 'none'}")
        kinds.setdefault(held[0], line)
    if len(kinds) > 1:
        places = " and ".join(f"{kind} (line {line})" for kind, line in kinds.items())
        raise TableError(f"{path}: expected the same of {', '.join(KINDS)} in all rows, found {places}")
    return next(iter(kinds))


Matched = Mapping[int, tuple[int, Mapping[str, object]]]
"""Training row -> its line in the file and what is there."""


def _match(path: Path, records: Iterable[tuple[int, Mapping[str, object]]], context: RunContext) -> Matched:
    """The file's rows by training row."""
    rows = _rows_by_id(context.tokens.ids, context.tokens.original_ids)
    removed = context.data.pool.removed
    heldout = [context.heldout] if context.data.choosing is None else [context.heldout, context.data.choosing]
    others = {*(id for tokens in heldout for id in (*tokens.ids, *tokens.original_ids)), *(row.id for row in removed)}
    others |= {row.original_id for row in removed}
    found: dict[int, tuple[int, Mapping[str, object]]] = {}
    unknown: list[str] = []
    for line, row in records:
        names = [str(row[key]) for key in ("id", "original_id") if row.get(key) not in (None, "")]
        if not names:
            raise TableError(f"{path}:{line}: expected id or original_id, found neither")
        of_row = next((rows[name] for name in names if name in rows), None)
        if of_row is None:
            unknown += [] if others.intersection(names) else names[:1]
            continue
        if len(of_row) > 1:
            raise TableError(
                f"{path}:{line}: {names[0]!r} is the own id of {len(of_row)} rows of the pool; name rows by the ids in "
                "kept.parquet or in an export"
            )
        if of_row[0] in found:
            raise TableError(f"{path}:{line}: a second row of {names[0]!r}; the first is in line {found[of_row[0]][0]}")
        found[of_row[0]] = (line, row)
    trusted = set(context.data.trusted.tolist())
    missing = [id for row, id in enumerate(context.tokens.ids) if row not in found and row not in trusted]
    if context.recipe.pool.max_rows is not None:
        unknown = []  # they may be in the rows that it leaves out
    for ids, fault in ((unknown, "are in no row of the pool"), (missing, "of training rows are not in the file")):
        if ids:
            raise TableError(f"{path}: {len(ids):,} ids {fault}: {', '.join(map(repr, ids[:_NAMED]))}{_more(ids)}")
    return found


def _more(ids: Sequence[str]) -> str:
    return f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""


def _rows_by_id(ids: Sequence[str], original_ids: Sequence[str]) -> dict[str, list[int]]:
    """Rows by their own ids, and by our ids, which come first."""
    rows: dict[str, list[int]] = {}
    for row, id in enumerate(original_ids):
        if id:
            rows.setdefault(id, []).append(row)
    return rows | {id: [row] for row, id in enumerate(ids)}


def _numbers(path: Path, kind: str, matched: Matched, default: Ragged) -> Ragged:
    """A number a token, float32; ``default`` for rows that are not in the file."""
    columns = []
    for row, own in enumerate(default):
        if row not in matched:
            columns.append(own)
            continue
        line, held = matched[row]
        values = held[kind]
        if not isinstance(values, list) or len(values) != len(own):
            count = f"{len(values)} of them" if isinstance(values, list) else type(values).__name__
            raise TableError(f"{path}:{line}: {kind}: expected {len(own)} numbers, one a token, found {count}")
        try:
            columns.append(np.array([np.nan if value is None else value for value in values], dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise TableError(f"{path}:{line}: {kind}: expected numbers ({error})") from error
    return Ragged.from_rows(columns, np.float32)


def _spans(path: Path, found: tuple[int, Mapping[str, object]] | None) -> tuple[WeightSpan, ...]:
    if found is None:
        return ()
    line, held = found
    spans = held["spans"]
    if not isinstance(spans, list):
        raise TableError(f"{path}:{line}: spans: expected a list, found {type(spans).__name__}")
    return tuple(_span(path, line, span) for span in spans)


def _is_dropped(path: Path, found: tuple[int, Mapping[str, object]] | None) -> bool:
    value = None if found is None else found[1].get("dropped")
    if found is not None and value is not None and not isinstance(value, bool):
        raise TableError(f"{path}:{found[0]}: dropped: expected true or false, found {value!r:.40}")
    return value is True


def _span(path: Path, line: int, span: object) -> WeightSpan:
    held: Mapping[str, object] = span if isinstance(span, Mapping) else {}
    numbers: list[float] = []
    for key in ("message", "start", "end", "weight"):
        number = held.get(key)
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise TableError(
                f"{path}:{line}: spans: expected numbers message, start, end and weight, found {span!r:.80}"
            )
        numbers.append(number)
    message, start, end = map(int, numbers[:3])
    return WeightSpan(message, start, end, float(numbers[3]))
