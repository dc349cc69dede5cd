"""What a table of labelled tokens kept: by source, turn and position, by score, and token by token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenclean.report.viewer.page_data import ViewedTable
from tokenclean.report.viewer.ranked_table import take_rows
from tokenclean.report.viewer.token_spans import SpanDecoder
from tokenclean.token_table import TokenTable
from tokenclean.tokens.statistics import PoolStatistics, SourceStatistics, table_statistics

BINS = 60
"""Bins of a histogram of scores."""
TAIL = 0.005
"""Share of the scores below and above the histogram's range, counted in its first and last bin."""
MOST_TURNS = 12
"""Turns counted separately; later ones are counted with the last."""
EXAMPLE_CHARACTERS = 70
"""Characters of context on either side of a token in an example."""


@dataclass(frozen=True)
class Share:
    """Response tokens of a group and how many of them are kept."""

    tokens: int
    kept: int

    @property
    def value(self) -> float:
        """In [0, 1]; 0 without tokens."""
        return self.kept / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class ScoreHistogram:
    """``edges``: nats, float64 (BINS + 1,). ``kept``, ``dropped``: tokens by bin, int64 (BINS,); those beyond the range
    are in the first and the last bin. ``unscored``: response tokens without a score."""

    edges: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray
    unscored: int


@dataclass(frozen=True)
class TokenExample:
    """A token of the vocabulary, how often it is a response token and how often kept, and one typical place: the text
    before it, its own text and the text after it."""

    token: int
    piece: str
    share: Share
    before: str
    text: str
    after: str
    source: str


@dataclass(frozen=True)
class SelectionSummary:
    """What the strategy of a run kept.

    ``by_source``, ``by_turn``, ``by_position``: kept shares; turns count the answers of a conversation from 1,
    positions the tokens of an answer from 1, in the groups 1, 2, 3–4, 5–8, … ``histogram`` and ``source_histograms``:
    None and empty without scores. ``digest``: a hash of the response tokens, for ``overlap``; ``kept_bits``: which of
    them are kept, uint8, eight a byte. ``dropped`` and ``kept``: the tokens of the vocabulary that stand out
    (``standing_out``).
    """

    run: str
    strategy: str
    metadata: Mapping[str, Any]
    statistics: PoolStatistics
    total: Share
    emptied_rows: int
    by_source: dict[str, Share]
    by_turn: dict[str, Share]
    by_position: dict[str, Share]
    histogram: ScoreHistogram | None
    digest: bytes
    kept_bits: np.ndarray
    source_histograms: dict[str, ScoreHistogram] = field(default_factory=dict)
    dropped: tuple[TokenExample, ...] = ()
    kept: tuple[TokenExample, ...] = ()

    @property
    def is_selecting(self) -> bool:
        """Whether some response token is dropped."""
        return self.total.kept < self.total.tokens


@dataclass(frozen=True)
class _ResponseTokens:
    """One entry for each of R response tokens, in the order of (row, position). ``score_R``: NaN without scores."""

    token_R: np.ndarray
    kept_R: np.ndarray
    source_R: np.ndarray
    turn_R: np.ndarray
    position_R: np.ndarray
    row_R: np.ndarray
    column_R: np.ndarray
    score_R: np.ndarray


def summarize(
    path: Path, run: str, strategy: str, decoder: SpanDecoder | None = None, *, examples: int = 15
) -> SelectionSummary:
    """Read a ``kept.parquet``. With a ``decoder``, up to ``examples`` tokens that stand out, dropped and kept ones.

    Memory: about 40 bytes a response token, for rows of any length. Raises TableError as ``iter_table``.
    """
    table = ViewedTable.of_file(strategy, path)
    sources: dict[str, int] = {}
    statistics: dict[str, SourceStatistics] = {}
    parts: list[_ResponseTokens] = []
    rows = emptied = 0
    metadata: Mapping[str, Any] = {}
    for part in table.parts():
        found = _response_tokens(part, sources, rows)
        for source in table_statistics(part).sources:
            statistics[source.source] = statistics.get(source.source, SourceStatistics(source.source)).plus(source)
        kept_N, response_N = (np.bincount(found.row_R - rows, w, len(part)) for w in (found.kept_R, None))
        emptied += int(np.count_nonzero((response_N > 0) & (kept_N == 0)))
        rows += len(part)
        metadata = part.metadata
        parts.append(found)
    all_R = _concatenated(parts)
    names = list(sources)
    turns = np.minimum(all_R.turn_R, MOST_TURNS)
    groups = _position_group(all_R.position_R)
    histogram, of_sources = _histograms(all_R, names)
    summary = SelectionSummary(
        run,
        strategy,
        metadata,
        PoolStatistics(tuple(statistics.values())),
        Share(len(all_R.kept_R), int(all_R.kept_R.sum())),
        emptied,
        _shares(all_R.source_R, all_R.kept_R, names),
        _shares(turns - 1, all_R.kept_R, [*map(str, range(1, MOST_TURNS)), f"{MOST_TURNS}+"]),
        _shares(groups, all_R.kept_R, [_group_name(group) for group in range(int(groups.max(initial=0)) + 1)]),
        histogram,
        hashlib.blake2b(all_R.token_R.tobytes() + all_R.row_R.tobytes(), digest_size=16).digest(),
        np.packbits(all_R.kept_R),
        of_sources,
    )
    if decoder is None or not summary.is_selecting:
        return summary
    dropped, kept = (_examples(table, all_R, examples, of_kept, names, decoder) for of_kept in (False, True))
    return replace(summary, dropped=dropped, kept=kept)


def overlap(one: SelectionSummary, other: SelectionSummary) -> float | None:
    """Jaccard overlap of two kept sets; None where the selections are over different tokens, 1 where both are empty."""
    if one.digest != other.digest:
        return None
    common, either = one.kept_bits & other.kept_bits, one.kept_bits | other.kept_bits
    count = int(np.bitwise_count(either).sum())
    return int(np.bitwise_count(common).sum()) / count if count else 1.0


def standing_out(token_R: np.ndarray, kept_R: np.ndarray, count: int, *, of_kept: bool) -> np.ndarray:
    """Tokens of the vocabulary that are dropped (or with ``of_kept``, kept) more often than expected from the share of
    all tokens, at most ``count``, by the excess: (times dropped) − (occurrences) · (dropped share of all tokens).

    The excess grows with a token's frequency and with how one-sided its labels are.
    """
    size = int(token_R.max(initial=-1)) + 1
    occurrences = np.bincount(token_R, minlength=size)
    wanted_R = kept_R if of_kept else ~kept_R
    times = np.bincount(token_R[wanted_R], minlength=size)
    excess = times - occurrences * (wanted_R.mean() if len(wanted_R) else 0.0)
    order = np.argsort(-excess, kind="stable")[:count]
    return order[excess[order] > 0]


def _response_tokens(part: TokenTable, sources: dict[str, int], first_row: int) -> _ResponseTokens:
    is_response = part["is_response"].values
    row_T = part["is_response"].row_of_value()
    column_T = np.arange(len(row_T)) - part["is_response"].offsets[row_T]
    opens_T = is_response & ((column_T == 0) | ~np.concatenate([[False], is_response[:-1]]))
    place_R = np.flatnonzero(is_response)
    row_R = row_T[place_R]
    answer_R = np.cumsum(opens_T)[place_R]  # numbered over the part, from 1
    start_of_answer = np.flatnonzero(opens_T)
    first_answer_N = np.full(len(part), 1)
    answers, places = np.unique(row_R, return_index=True)
    first_answer_N[answers] = answer_R[places]
    number_N = np.array([sources.setdefault(name, len(sources)) for name in part.sources], dtype=np.int32)
    is_kept = part["is_kept"].values if "is_kept" in part.columns else is_response
    score_T = part["score"].values if "score" in part.columns else np.full(len(is_response), np.nan)
    return _ResponseTokens(
        part["input_ids"].values[place_R].astype(np.int32),
        is_kept[place_R].astype(bool),
        number_N[row_R],
        (answer_R - first_answer_N[row_R] + 1).astype(np.int32),
        (place_R - start_of_answer[answer_R - 1] + 1).astype(np.int32),
        row_R + first_row,
        column_T[place_R].astype(np.int32),
        score_T[place_R].astype(np.float32),
    )


def _concatenated(parts: Sequence[_ResponseTokens]) -> _ResponseTokens:
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return _ResponseTokens(*map(np.concatenate, columns))


def _shares(group_R: np.ndarray, kept_R: np.ndarray, names: Sequence[str]) -> dict[str, Share]:
    tokens = np.bincount(group_R, minlength=len(names))
    kept = np.bincount(group_R[kept_R], minlength=len(names))
    return {n: Share(int(t), int(k)) for n, t, k in zip(names, tokens, kept, strict=True) if t}


def _position_group(position_R: np.ndarray) -> np.ndarray:
    """0 for position 1, 1 for 2, 2 for 3 and 4, 3 for 5 to 8, …"""
    return np.ceil(np.log2(position_R)).astype(np.int64)


def _group_name(group: int) -> str:
    first, last = 2 ** (group - 1) + 1 if group else 1, 2**group
    return str(last) if first == last else f"{first}–{last}"


def _histograms(
    all_R: _ResponseTokens, names: Sequence[str]
) -> tuple[ScoreHistogram | None, dict[str, ScoreHistogram]]:
    is_scored = np.isfinite(all_R.score_R)
    if not is_scored.any():
        return None, {}
    low, high = np.quantile(all_R.score_R[is_scored].astype(np.float64), [TAIL, 1 - TAIL])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    bin_R = np.clip(np.searchsorted(edges, all_R.score_R, side="right") - 1, 0, BINS - 1)

    def histogram(is_counted_R: np.ndarray) -> ScoreHistogram:
        kept, dropped = (
            np.bincount(bin_R[is_counted_R & is_scored & of], minlength=BINS) for of in (all_R.kept_R, ~all_R.kept_R)
        )
        return ScoreHistogram(edges, kept, dropped, int(np.count_nonzero(is_counted_R & ~is_scored)))

    of_sources = {name: histogram(all_R.source_R == number) for number, name in enumerate(names)}
    return histogram(np.ones(len(bin_R), dtype=bool)), of_sources


def _examples(
    table: ViewedTable,
    all_R: _ResponseTokens,
    count: int,
    of_kept: bool,
    names: Sequence[str],
    decoder: SpanDecoder,
) -> tuple[TokenExample, ...]:
    """The tokens that stand out, each at the place with the median score among those where it was dropped (or kept), or
    at the middle one without scores."""
    tokens = standing_out(all_R.token_R, all_R.kept_R, count, of_kept=of_kept).tolist()
    places = []
    for token in tokens:
        found = np.flatnonzero((all_R.token_R == token) & (all_R.kept_R == of_kept))
        by_score = found[np.argsort(all_R.score_R[found], kind="stable")]
        places.append(int(by_score[len(by_score) // 2]))
    rows = np.unique(all_R.row_R[places])
    texts = take_rows(table.parts(), rows)["input_ids"]
    decoded = {int(row): decoder.decode(ids) for row, ids in zip(rows, texts, strict=True)}
    examples = []
    for token, place in zip(tokens, places, strict=True):
        spans, column = decoded[int(all_R.row_R[place])], int(all_R.column_R[place])
        start, end = next((s, e) for first, last, s, e in spans.spans() if first <= column < last)
        of_token = all_R.token_R == token
        examples.append(
            TokenExample(
                token,
                decoder.piece(token),
                Share(int(of_token.sum()), int((of_token & all_R.kept_R).sum())),
                ("…" if start > EXAMPLE_CHARACTERS else "") + spans.text[max(0, start - EXAMPLE_CHARACTERS) : start],
                spans.text[start:end],
                spans.text[end : end + EXAMPLE_CHARACTERS]
                + ("…" if end + EXAMPLE_CHARACTERS < len(spans.text) else ""),
                names[int(all_R.source_R[place])],
            )
        )
    return tuple(examples)
