"""What to look at first: spans that a run's methods find doubtful, those of one conversation together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from tokenclean.review.token_places import TokenPlaces
from tokenclean.token_table import TokenTable

_LOWEST = 0.1  # of a table without labels, the share of the tokens that is doubtful
_GAP = 2  # tokens between two passages that are one to a reader
_A_ROW = 5  # passages of one row in each list


@dataclass(frozen=True)
class CriticSpan:
    """Characters [start, end) of message ``message`` of the row with the id ``id``, and what is said against them."""

    id: str
    message: int
    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Suggestion:
    """Tokens [first, behind) of row ``row`` (number in the table), all in one message, and why they are suggested."""

    row: int
    first: int
    behind: int
    reason: str


def suggest(
    table: TokenTable,
    places: TokenPlaces,
    others: Mapping[str, TokenTable],
    noise: Mapping[str, float],
    most: int,
    critic: Sequence[CriticSpan] = (),
) -> list[Suggestion]:
    """At most ``most`` spans, those of one conversation together and in its order, the most doubtful one's first.

    Four lists take turns: spans that a critic named (``critic``), in its order; answers by the noise rate that the
    table's strategy estimated (``noise``: row id -> rate), highest first; passages that the table drops, lowest sum of
    scores first, or longest first without scores (where there are no labels, the tenth of the tokens with the lowest
    scores); and passages on which this table and those of ``others``, of the same rows, disagree, longest first. Of the
    spans and of either passages a conversation has five at most, and two passages with no more than two tokens between
    them are one. Tokens without a place are never suggested.
    """
    lists = [
        _named(table, places, critic),
        _by_noise(table, places, noise, most),
        _dropped(table, places),
        _disputed(table, places, others),
    ]
    taken = [one for together in zip_longest(*lists) for one in together if one is not None]
    distinct: dict[tuple[int, int, int], Suggestion] = {}
    for one in taken:
        distinct.setdefault((one.row, one.first, one.behind), one)
    chosen = list(distinct.values())[:most]
    turn: dict[int, int] = {}
    for one in chosen:
        turn.setdefault(one.row, len(turn))
    return sorted(chosen, key=lambda one: (turn[one.row], one.first, one.behind))


def _named(table: TokenTable, places: TokenPlaces, critic: Sequence[CriticSpan]) -> list[Suggestion]:
    """The tokens that share a character with a span."""
    row_of = {name: row for row, name in enumerate(table.ids)}
    found = []
    for span in critic:
        if (row := row_of.get(span.id)) is None:
            continue
        is_in = (places.message[row] == span.message) & (places.start[row] < span.end) & (places.end[row] > span.start)
        if len(tokens := np.flatnonzero(is_in)):
            found.append(Suggestion(row, int(tokens[0]), int(tokens[-1]) + 1, span.reason))
    return _first_of_rows(found)


def _by_noise(table: TokenTable, places: TokenPlaces, noise: Mapping[str, float], most: int) -> list[Suggestion]:
    rates = np.array([noise.get(name, 0.0) for name in table.ids])
    order = np.argsort(-rates, kind="stable")
    order = order[rates[order] > 0][:most]
    is_wanted = np.zeros(len(table), dtype=bool)
    is_wanted[order] = True
    is_chosen = places.has_place & np.repeat(is_wanted, places.message.lengths)
    of_row: dict[int, list[Suggestion]] = {}
    for one in _runs(places, is_chosen, "estimated noise"):
        of_row.setdefault(one.row, []).append(one)
    return [one for row in order.tolist() for one in of_row.get(row, [])]


def _dropped(table: TokenTable, places: TokenPlaces) -> list[Suggestion]:
    score = table["score"].values.astype(np.float64) if "score" in table.columns else None
    if "is_kept" in table.columns:
        is_doubtful = places.has_place & ~table["is_kept"].values
    elif score is not None:
        is_scored = places.has_place & np.isfinite(score)
        bound = np.quantile(score[is_scored], _LOWEST) if is_scored.any() else -np.inf
        is_doubtful = is_scored & (score <= bound)
    else:
        return []
    runs = _passages(places, is_doubtful, "dropped" if "is_kept" in table.columns else "low score")
    if score is None:
        return _first_of_rows(_longest_first(runs))
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(score))])
    offsets = places.message.offsets

    def score_sum(one: Suggestion) -> float:
        start = offsets[one.row]
        return float(sums[start + one.behind] - sums[start + one.first])

    return _first_of_rows(sorted(runs, key=score_sum))


def _disputed(table: TokenTable, places: TokenPlaces, others: Mapping[str, TokenTable]) -> list[Suggestion]:
    of_tables = (one["is_kept"].values for one in (table, *others.values()) if "is_kept" in one.columns)
    labels = [labels for labels in of_tables if not labels[places.has_place].all()]  # keeping all is no opinion
    if len(labels) < 2:
        return []
    kept = np.stack(labels)
    is_disputed = places.has_place & (kept.any(axis=0) != kept.all(axis=0))
    return _first_of_rows(_longest_first(_passages(places, is_disputed, "methods disagree")))


def _longest_first(runs: Sequence[Suggestion]) -> list[Suggestion]:
    return sorted(runs, key=lambda one: one.first - one.behind)


def _passages(places: TokenPlaces, is_chosen: np.ndarray, reason: str) -> list[Suggestion]:
    """Runs of chosen tokens; those of one message with few tokens between them are one. ``is_chosen``: bool (T,)."""
    joined: list[Suggestion] = []
    message, offsets = places.message.values, places.message.offsets
    for one in _runs(places, is_chosen, reason):
        last = joined[-1] if joined else None
        if last is not None and last.row == one.row and one.first - last.behind <= _GAP:
            start = offsets[one.row]
            if (message[start + last.first : start + one.behind] == message[start + one.first]).all():
                joined[-1] = replace(last, behind=one.behind)
                continue
        joined.append(one)
    return joined


def _first_of_rows(ordered: Sequence[Suggestion]) -> list[Suggestion]:
    """The first few of each row."""
    seen: Counter[int] = Counter()
    chosen = []
    for one in ordered:
        seen[one.row] += 1
        if seen[one.row] <= _A_ROW:
            chosen.append(one)
    return chosen


def _runs(places: TokenPlaces, is_chosen: np.ndarray, reason: str) -> list[Suggestion]:
    """The longest runs of chosen tokens of one message, in order. ``is_chosen``: bool, shape (T,)."""
    row, message = places.message.row_of_value(), places.message.values
    continues = np.zeros(len(is_chosen), dtype=bool)
    continues[1:] = is_chosen[1:] & is_chosen[:-1] & (row[1:] == row[:-1]) & (message[1:] == message[:-1])
    is_last = is_chosen.copy()
    is_last[:-1] &= ~continues[1:]
    firsts, lasts = np.flatnonzero(is_chosen & ~continues), np.flatnonzero(is_last)
    starts = places.message.offsets[row[firsts]]
    return [
        Suggestion(*numbers, reason)
        for numbers in zip(row[firsts].tolist(), (firsts - starts).tolist(), (lasts + 1 - starts).tolist(), strict=True)
    ]
