"""The viewer's data: conversations of one table or two, decoded, with all values of their tokens, packed for a page."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import TableError
from tokenclean.ragged import Ragged
from tokenclean.recipe import STRATEGIES
from tokenclean.report.viewer.ranked_table import (
    NOT_RANKED,
    STEPS,
    RankedPool,
    Sample,
    choose_rows,
    count_cuts,
    earlier,
    pool_ranks,
    survey_table,
    take_rows,
)
from tokenclean.report.viewer.token_spans import SpanDecoder, TokenSpans
from tokenclean.selection import kept_count
from tokenclean.token_table import TokenTable, iter_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FIRST_PROPORTION = 0.6
"""The cut of a table without a selection: the paper's k."""
PRECISION = "Scores, losses and weights are rounded to 11 binary digits: a relative error of at most 0.05 %."

_VALUES = ("score", "base_loss", "previous_loss", "reference_loss", "weight")
# Shares of more sources than this would outweigh the conversations; the smallest are counted together.
_MAX_SOURCES = 200


@dataclass(frozen=True)
class ViewedTable:
    """A table to look at. ``parts``: returns its rows part after part, the same at every call. ``noise``: row id -> the
    noise rate that the table's strategy estimated, for the rows that have one."""

    name: str
    parts: Callable[[], Iterable[TokenTable]]
    noise: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_table(cls, name: str, table: TokenTable) -> ViewedTable:
        """A table in memory."""
        return cls(name, lambda: [table])

    @classmethod
    def of_file(cls, name: str, path: Path | str, noise: Mapping[str, float] | None = None) -> ViewedTable:
        """A table on disk, read row group by row group. Reading raises TableError as ``iter_table``."""
        return cls(name, partial(_parts_of_file, path), noise or {})


@dataclass(frozen=True)
class Shown:
    """The shown rows of one table, and the whole table's survey and ranks.

    ``rows``: int64, their numbers in the table. ``table``: those rows. ``ranks_R``: uint32, of all the pool's response
    tokens (``pool_ranks``); None where none has a score. ``noise``: as of ``ViewedTable``.
    """

    name: str
    survey: RankedPool
    rows: np.ndarray
    table: TokenTable
    ranks_R: np.ndarray | None
    noise: Mapping[str, float]

    @property
    def done(self) -> str:
        """What the table's strategy did, without a full stop; empty where scores show it, or nothing is known."""
        strategy = STRATEGIES.get(str(self.survey.metadata.get("strategy")))
        if self.ranks_R is not None or strategy is None or not strategy.does:
            return ""
        shown = "; each conversation is shown with the noise rate that it estimated" if self.noise else ""
        return f"{strategy.name} {strategy.does}{shown}"

    @property
    def ranked_tokens(self) -> int:
        """Response tokens of the pool that have a score."""
        return 0 if self.ranks_R is None else int(np.count_nonzero(self.ranks_R != NOT_RANKED))

    @property
    def proportion(self) -> float:
        """The k of the table's own selection, or the paper's where it has none."""
        stated = (self.survey.metadata.get("selection") or {}).get("proportion")
        return FIRST_PROPORTION if stated is None else float(stated)

    def kept_R(self, proportion: float | None) -> np.ndarray:
        """Labels of all the pool's response tokens, bool: a cut of the whole pool, or for None the table's own.

        A token without a score has the table's own label in every cut. In a table without labels such tokens are
        dropped, and None cuts the others at ``self.proportion``; without scores and labels all tokens are kept.
        """
        own = self.survey.kept_R
        if self.ranks_R is None:
            return np.ones(int(self.survey.responses[-1]), dtype=bool) if own is None else own
        if proportion is None and own is not None:
            return own
        count = kept_count(self.ranked_tokens, self.proportion if proportion is None else proportion)
        is_kept = self.ranks_R < count
        return is_kept if own is None else np.where(self.ranks_R == NOT_RANKED, own, is_kept)

    def shown_R(self, values_R: np.ndarray) -> np.ndarray:
        """The shown rows' part of values given for each of the pool's response tokens."""
        return Ragged(values_R, self.survey.responses).take(self.rows).values


@dataclass(frozen=True)
class View:
    """One table, or two to be compared, of the same conversations in the same order.

    ``spans``: each conversation's text. ``unmatched``: rows of either table that the other lacks, or has with other
    tokens; ``too_long``: rows with more tokens than a view may hold.
    """

    tables: tuple[Shown, ...]
    spans: tuple[TokenSpans, ...]
    decoder: SpanDecoder
    seed: int
    unmatched: int
    too_long: int


def open_view(
    tables: Sequence[ViewedTable],
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    sample: Sample | None = None,
    rows: np.ndarray | None = None,
) -> View:
    """Read one table, or two to compare, and decode the conversations to show (``choose_rows``).

    Two tables show the conversations that both have, by id and with the same tokens. ``rows``: int64, rows of a single
    table to show in place of a sample. Raises TableError where there is nothing to show, and where the ids are not
    those of the tokenizer.
    """
    sample = sample or Sample()
    names = [table.name for table in tables]
    surveys = [survey_table(table.parts(), table.name) for table in tables]
    matches = _common_rows(surveys)
    first = surveys[0]
    if not len(matches[0]):
        why = "holds no row" if len(tables) == 1 else "have no conversation in common, by id and with the same tokens"
        raise TableError(f"{' and '.join(names)}: {why}")
    sources = [first.sources[row] for row in matches[0].tolist()]
    lengths = first.lengths[matches[0]]
    chosen = choose_rows(sources, lengths, sample) if rows is None else rows
    if not len(chosen):
        raise TableError(f"{names[0]}: every row has more than {sample.tokens:,} tokens, the most that a view may hold")
    shown = tuple(
        Shown(table.name, survey, match[chosen], take_rows(table.parts(), match[chosen]), _ranks(survey), table.noise)
        for table, survey, match in zip(tables, surveys, matches, strict=True)
    )
    decoder = SpanDecoder(tokenizer)
    ids = shown[0].table["input_ids"]
    if len(ids.values) and int(ids.values.max()) >= decoder.vocabulary_size:
        raise TableError(
            f"{names[0]}: holds token {int(ids.values.max())}, but the tokenizer has only {decoder.vocabulary_size:,}; "
            "give the tokenizer of the base model that the table was made with"
        )
    unmatched = sum(len(survey.ids) - len(match) for survey, match in zip(surveys, matches, strict=True))
    too_long = int(np.count_nonzero(lengths > sample.tokens))
    return View(shown, tuple(map(decoder.decode, ids)), decoder, sample.seed, unmatched, too_long)


def page_data(
    view: View, *, proportion: float | None = None, review: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The view as JSON for its page, arrays little-endian in base64.

    ``proportion``: where the slider starts; by default at the table's own labels. ``review``: what the page needs to
    take decisions (``review_data``). ``lengths``: the characters of each
    token (``TokenSpans.lengths``, in UTF-16 units) as base-128 numbers, low digits first, all bytes but the last with
    the top bit set. Values of response tokens are float16 times a power of two (``PRECISION``), ``ranks`` uint32,
    labels bits, lowest first.
    """
    first = view.tables[0]
    ids, survey = first.table["input_ids"], first.survey
    sources = {name: number for number, name in enumerate(dict.fromkeys(first.table.sources))}
    pieces, piece_T = np.unique(ids.values, return_inverse=True)
    lengths = [_utf16_lengths(row) for row in view.spans]
    return {
        "totals": {
            "conversations": len(survey.ids),
            "tokens": int(survey.lengths.sum()),
            "shownTokens": len(ids.values),
            "unmatched": view.unmatched,
            "tooLong": view.too_long,
            "seed": view.seed,
        },
        "precision": PRECISION,
        "steps": STEPS,
        "ids": _distinct(first.table.ids),
        "rows": first.rows.tolist(),
        "sources": list(sources),
        "sourceOf": [sources[name] for name in first.table.sources],
        "texts": [row.text for row in view.spans],
        "counts": packed(ids.lengths, "<u4"),
        "lengths": packed(base128(np.concatenate(lengths)), "u1"),
        "pieces": [view.decoder.piece(token) for token in pieces.tolist()],
        "pieceIds": pieces.tolist(),
        "pieceOf": packed(piece_T, "<u4"),
        "tables": [_table_data(shown, proportion) for shown in view.tables],
        "review": review,
    }


def _table_data(shown: Shown, proportion: float | None) -> dict[str, object]:
    survey, table = shown.survey, shown.table
    is_response = table["is_response"].values
    start = shown.proportion if proportion is None else proportion
    return {
        "name": shown.name,
        "response": _bits(is_response),
        "kept": None if survey.kept_R is None else _bits(shown.shown_R(survey.kept_R)),
        "ranks": None if shown.ranks_R is None else packed(shown.shown_R(shown.ranks_R), "<u4"),
        "ranked": shown.ranked_tokens,
        "values": {
            name: _half(table[name].values[is_response])
            for name in _VALUES
            if name in table.columns and (name != "score" or shown.ranks_R is not None)
        },
        "startStep": round(start * STEPS),
        "startsRecut": survey.kept_R is None or proportion is not None,
        "shares": _shares(shown),
        "done": shown.done,
        "noise": [shown.noise.get(name) for name in table.ids] if shown.noise else None,
        "notes": _notes(shown),
    }


def _shares(shown: Shown) -> dict[str, object]:
    """By source of the whole pool, its response tokens, and how many of them the table and every cut keep."""
    survey = shown.survey
    row_sizes = np.diff(survey.responses)
    sizes: Counter[str] = Counter()
    for name, size in zip(survey.sources, row_sizes.tolist(), strict=True):
        sizes[name] += size
    largest = [name for name, _ in sizes.most_common(_MAX_SOURCES)]
    number = {name: at for at, name in enumerate(largest)}
    names = largest
    if len(sizes) > len(largest):
        names = [*largest, f"({len(sizes) - len(largest):,} smaller sources)"]
    source_R = np.repeat([number.get(name, len(largest)) for name in survey.sources], row_sizes).astype(np.int64)

    def counted(is_counted_R: np.ndarray) -> list[int]:
        return np.bincount(source_R[is_counted_R], minlength=len(names)).tolist()

    shares: dict[str, object] = {
        "sources": names,
        "tokens": np.bincount(source_R, minlength=len(names)).tolist(),
        "own": counted(shown.kept_R(None)),
    }
    if shown.ranks_R is not None and survey.scores_R is not None:
        cuts, thresholds = count_cuts(survey.scores_R, shown.ranks_R, source_R, len(names))
        is_unranked = shown.ranks_R == NOT_RANKED
        shares |= {
            "keptUnranked": counted(is_unranked & shown.kept_R(None)),
            "cuts": packed(cuts, "<u4"),
            "thresholds": packed(thresholds, "<f4"),
        }
    return shares


def _notes(shown: Shown) -> list[str]:
    """What a reader needs to know about the table, in sentences."""
    survey = shown.survey
    total = int(survey.responses[-1])
    if shown.ranks_R is None:
        labels = "" if survey.kept_R is not None else " It has no labels either: every response token counts as kept."
        return [f"The table has no scores, so there is no ranking and no slider.{labels}"]
    notes = []
    unranked = total - shown.ranked_tokens
    if unranked:
        always = "are dropped" if survey.kept_R is None else "keep the table's label"
        notes.append(
            f"{unranked:,} of {total:,} response tokens have no score and {always} at every position of the slider; it "
            f"cuts the other {shown.ranked_tokens:,}."
        )
    if survey.kept_R is not None:
        differing = int(np.count_nonzero(shown.kept_R(shown.proportion) != survey.kept_R))
        if differing:
            level = (survey.metadata.get("selection") or {}).get("level")
            how = f", at level {level}" if level not in (None, "global") else ""
            notes.append(
                f"The table's own labels are not one cut of the whole pool{how}: a cut at {100 * shown.proportion:g} % "
                f"gives {differing:,} of {total:,} response tokens another label."
            )
    if not {"base_loss", "reference_loss"} & set(shown.table.columns):
        notes.append("The table has scores but not the two losses.")
    return notes


def _ranks(survey: RankedPool) -> np.ndarray | None:
    if survey.scores_R is None or not np.any(np.isfinite(survey.scores_R)):
        return None
    return pool_ranks(survey.scores_R)


def _common_rows(surveys: Sequence[RankedPool]) -> list[np.ndarray]:
    """For each table, the rows that all tables have, by id and with the same tokens, in the first one's order."""
    if len(surveys) == 1:
        return [np.arange(len(surveys[0].ids))]
    row_of = []
    for survey in surveys:
        keys = list(zip(survey.ids, survey.digests, strict=True))  # rows may repeat, so each is numbered too
        row_of.append({key: row for row, key in enumerate(zip(keys, earlier(keys), strict=True))})
    common = [key for key in row_of[0] if all(key in rows for rows in row_of[1:])]
    return [np.array([rows[key] for key in common], dtype=np.int64) for rows in row_of]


def _parts_of_file(path: Path | str) -> Iterable[TokenTable]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError):
        names = []  # iter_table says what is wrong with the file
    return iter_table(path, [name for name in (*_VALUES, "is_kept") if name in names])


def _distinct(ids: Sequence[str]) -> list[str]:
    """The ids, repeated ones with a number appended, since they name conversations in links."""
    return [name if number == 0 else f"{name} ({number + 1})" for name, number in zip(ids, earlier(ids), strict=True)]


def _utf16_lengths(row: TokenSpans) -> np.ndarray:
    """``lengths`` in UTF-16 units, in which JavaScript counts."""
    if not row.text or max(row.text) <= "\uffff":
        return row.lengths
    characters = np.frombuffer(row.text.encode("utf-32-le", "surrogatepass"), "<u4")
    units_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(1 + (characters > 0xFFFF), dtype=np.int64)])
    return np.diff(units_before[np.cumsum(row.lengths)], prepend=0)


def base128(numbers: np.ndarray) -> np.ndarray:
    """Numbers ≥ 0 as bytes of 7 bits each, low digits first, all but the last of a number with the top bit set."""
    sizes = np.ones(len(numbers), dtype=np.int64)
    for bits in range(7, 63, 7):
        sizes += numbers >> bits > 0
    starts = np.cumsum(sizes) - sizes
    digits = np.zeros(int(sizes.sum()), dtype=np.uint8)
    for place in range(int(sizes.max(initial=0))):
        has = sizes > place
        top_bit = (sizes[has] > place + 1) << 7
        digits[starts[has] + place] = (numbers[has] >> (7 * place)) & 127 | top_bit
    return digits


def _half(values: np.ndarray) -> dict[str, object]:
    """float16, and the power of two to multiply by: the largest value fits and small ones stay exact."""
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    largest = float(np.nanmax(np.abs(finite), initial=0.0)) if len(finite) else 0.0
    power = math.frexp(largest)[1] - 15 if largest else 0
    return {"half": packed(np.ldexp(finite, -power), "<f2"), "power": power}


def _bits(labels: np.ndarray) -> str:
    return packed(np.packbits(labels, bitorder="little"), "u1")


def packed(values: np.ndarray, dtype: str) -> str:
    """The values in a little-endian dtype, in base64."""
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode("ascii")
