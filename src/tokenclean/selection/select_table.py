"""Eq. 4 over a table on disk, in the memory of one row group: one pass finds the cuts, a second writes the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.selection.ranking import Level, check_level, check_proportion, check_seed, lowest_kept, select_tokens
from tokenclean.selection.response_tokens import not_finite, on_response
from tokenclean.selection.sortable_keys import order_keys, random_keys, score_of_key
from tokenclean.selection.streamed_ranking import CHUNK_KEYS, StoredKeys, find_cut, mask_of
from tokenclean.token_table import TokenTable, iter_table, open_table, read_metadata

_Labels = Callable[[TokenTable], Ragged]
"""Given the parts of a table one after another, from the first: their ``is_kept``."""


@dataclass(frozen=True)
class KeptCounts:
    """What a selection kept."""

    response_tokens: Counter[str]
    """Before the selection, by source."""
    kept_tokens: Counter[str]
    """By source."""
    emptied_rows: int
    """Rows with response tokens none of which is kept."""
    threshold: float | None
    """The lowest kept score (nats); None for level ``random`` and where nothing is kept."""


def select_table(
    table: Path | str,
    output: Path | str,
    *,
    proportion: float,
    level: Level = "global",
    seed: int | None = None,
) -> KeptCounts:
    """Write the table with ``is_kept`` (Eq. 4), row group by row group: the labels that ``select_tokens`` gives. Where
    the data contain loss weights, ``weight`` is the loss weight of each kept token.

    ``proportion``, ``level`` and ``seed`` are those of ``select_tokens``, applied to the column ``score``. An entry
    ``selection`` is added to the metadata. At the levels ``global`` and ``source``, the scores' keys are kept in a
    temporary file beside ``output``, 4 bytes a response token (8 where scores are not float32). ``output`` may be the
    table itself.

    Raises TableError for a table that cannot be read, lacks the column or is changed meanwhile; NonFiniteError for
    NaN or inf on a response token; RunFolderError where ``output`` cannot be written; ValueError as ``select_tokens``
    does.
    """
    check_level(level)
    check_proportion(proportion)
    metadata, state = read_metadata(table), _state(table)
    if level == "random":
        labels, threshold = _random_labels(table, proportion, check_seed(seed)), None
    elif level == "sample":
        labels, threshold = _row_labels(table, proportion)
    else:
        labels, threshold = _cut_labels(table, output, proportion, by_source=level == "source")
    if _state(table) != state:
        raise TableError(f"{table}: changed while its scores were read; select again when nothing writes it")

    selection = {"proportion": proportion, "level": level, "threshold": threshold}
    selection |= {"seed": seed} if level == "random" else {}
    response_tokens: Counter[str] = Counter()
    kept_tokens: Counter[str] = Counter()
    emptied_rows = 0
    with open_table(output, {**metadata, "selection": selection}) as writer:
        for part in iter_table(table):
            is_kept = labels(part)
            response_N, kept_N = (column.row_sums().astype(np.int64) for column in (part["is_response"], is_kept))
            emptied_rows += int(np.count_nonzero((response_N > 0) & (kept_N == 0)))
            for name, response, kept in zip(part.sources, response_N.tolist(), kept_N.tolist(), strict=True):
                response_tokens[name] += response
                kept_tokens[name] += kept
            columns = {"is_kept": is_kept}
            if "loss_weight" in part.columns:
                columns["weight"] = part.weighed(is_kept.map_values(lambda kept: kept.astype(np.float32)))
            writer.write(part.with_columns({}, **columns))
    return KeptCounts(response_tokens, kept_tokens, emptied_rows, threshold)


def _random_labels(table: Path | str, proportion: float, seed: int) -> _Labels:
    total = sum(int(np.count_nonzero(part["is_response"].values)) for part in iter_table(table, []))

    def chunks() -> Iterator[np.ndarray]:
        return (random_keys(seed, at, min(at + CHUNK_KEYS, total)) for at in range(0, total, CHUNK_KEYS))

    cut = find_cut(chunks, proportion, bits=64)
    seen = ties_taken = 0

    def labels(part: TokenTable) -> Ragged:
        nonlocal seen, ties_taken
        count = int(np.count_nonzero(part["is_response"].values))
        kept_R, ties_taken = mask_of(random_keys(seed, seen, seen + count), cut, ties_taken)
        seen += count
        return on_response(part["is_response"], kept_R)

    return labels


def _row_labels(table: Path | str, proportion: float) -> tuple[_Labels, float | None]:
    def labels(part: TokenTable) -> Ragged:
        return select_tokens(part["score"], part["is_response"], proportion=proportion, level="sample")

    thresholds = (lowest_kept(part["score"], labels(part)) for part in _scored_parts(table))
    return labels, min((threshold for threshold in thresholds if threshold is not None), default=None)


def _cut_labels(
    table: Path | str, output: Path | str, proportion: float, *, by_source: bool
) -> tuple[_Labels, float | None]:
    numbers: dict[str, int] | None = {} if by_source else None
    dtype = np.dtype(np.float32)
    with StoredKeys(beside=output) as stored:
        for part in _scored_parts(table):
            dtype = part["score"].values.dtype
            keys_R = _keys(part)
            for group, indices in _groups(part, numbers):
                stored.append(group, keys_R[indices])
        bits = 8 * stored.dtype.itemsize
        cuts = {group: find_cut(partial(stored.chunks, group), proportion, bits=bits) for group in stored.groups}
    ties_taken = dict.fromkeys(cuts, 0)

    def labels(part: TokenTable) -> Ragged:
        keys_R = _keys(part)
        kept_R = np.zeros(len(keys_R), dtype=bool)
        for group, indices in _groups(part, numbers):
            kept_R[indices], ties_taken[group] = mask_of(keys_R[indices], cuts[group], ties_taken[group])
        return on_response(part["is_response"], kept_R)

    thresholds = [cut.threshold for cut in cuts.values() if cut.kept]
    return labels, score_of_key(min(thresholds), dtype) if thresholds else None


def _scored_parts(table: Path | str) -> Iterator[TokenTable]:
    """The parts with their scores. After one that is not finite the rest is only counted, for the error."""
    first_fault: tuple[str, int, float] | None = None
    faults = total = rows = 0
    for part in iter_table(table, ["score"]):
        scores, is_response = part["score"].values, part["is_response"].values
        if scores.dtype.kind not in "iuf":
            raise TableError(f"{table}: column 'score': scores must be real numbers, found {scores.dtype}")
        at_fault = np.flatnonzero(is_response & ~np.isfinite(scores))
        if len(at_fault) and first_fault is None:
            token = int(at_fault[0])
            row, position = part["score"].locate(token)
            first_fault = f"row {rows + row} ({part.ids[row]!r})", position, float(scores[token])
        faults += len(at_fault)
        total += int(np.count_nonzero(is_response))
        rows += len(part)
        if first_fault is None:
            yield part
    if first_fault is not None:
        raise not_finite("score", *first_fault, faults, total, file=f"{table}: ")


def _keys(part: TokenTable) -> np.ndarray:
    return order_keys(part["score"].values[part["is_response"].values])


def _groups(part: TokenTable, numbers: dict[str, int] | None) -> Iterator[tuple[int, np.ndarray | slice]]:
    """Each group of response tokens and their indices among the part's, ascending; a new source gets a new number."""
    if numbers is None:
        yield 0, slice(None)
        return
    number_of_row = np.array([numbers.setdefault(name, len(numbers)) for name in part.sources], dtype=np.int64)
    group_R = number_of_row[part["is_response"].row_of_value()[part["is_response"].values]]
    by_group = np.argsort(group_R, kind="stable")
    groups, starts = np.unique(group_R[by_group], return_index=True)
    yield from zip(groups.tolist(), np.split(by_group, starts[1:]), strict=False)


def _state(table: Path | str) -> tuple[int, int, int]:
    state = Path(table).stat()
    return state.st_ino, state.st_size, state.st_mtime_ns
