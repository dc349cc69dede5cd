"""Rows whose noise is known: character spans, and for each row the same row without noise where there is one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.lab.plant import NoiseSpan, PlantedPool
from tokenclean.pool.conversation import Conversation, Pool, RejectedRow
from tokenclean.pool.sources import load_sources, read_source
from tokenclean.recipe import SourceSettings

TRUTH_KEYS = ("noise", "clean")
"""Keys of a row that state its truth. ``noise``: a list of spans, empty for a clean row; each is ``[start, end]``,
``[start, end, kind]`` or an object with ``start``, ``end`` and perhaps ``kind`` and ``turn``. ``clean``: the last
answer as it should be, or null."""

_PIECES = re.compile(r"\w+|[^\w\s]")
_OTHERWISE = "or plant noise with --plant"


@dataclass(frozen=True)
class TruthPool:
    """``pool``: rows as they would be trained. ``spans``: their noise, sorted by (row, turn, start). ``clean``: each
    row without its noise, the row itself where it has none; None where nobody knows it."""

    pool: Pool
    spans: tuple[NoiseSpan, ...]
    clean: tuple[Conversation | None, ...]

    def __len__(self) -> int:
        return len(self.pool)

    def take(self, rows: Sequence[int] | np.ndarray) -> TruthPool:
        """The given rows in the given order."""
        place = {int(row): number for number, row in enumerate(rows)}
        spans = [replace(span, row=place[span.row]) for span in self.spans if span.row in place]
        spans.sort(key=lambda span: (span.row, span.turn, span.start))
        return TruthPool(self.pool.take(rows), tuple(spans), tuple(self.clean[int(row)] for row in rows))


def clean_versions(truth: TruthPool) -> tuple[Conversation, ...]:
    """Each row without its noise. Raises PoolError for a row of which nobody knows it."""
    rows = tuple(row for row in truth.clean if row is not None)
    if len(rows) < len(truth):
        unknown = truth.pool[truth.clean.index(None)].id
        raise PoolError(
            f"{len(truth) - len(rows):,} of {len(truth):,} rows have no clean version, the first is {unknown}; add the "
            "key clean, or leave these rows out"
        )
    return rows


def truth_of_planted(clean: Pool, planted: PlantedPool) -> TruthPool:
    """The truth about noise that ``plant`` put into the pool ``clean``."""
    return TruthPool(planted.pool, planted.spans, clean.conversations)


def read_truth(sources: Sequence[SourceSettings]) -> TruthPool:
    """Rows of the sources with the truth that each states in ``TRUTH_KEYS``.

    Where a row has no ``noise`` but ``clean``, its noise are the words that differ from ``clean``. Spans count
    characters of the last answer, or of the turn that they name. Rows of ``prompt`` and ``response`` are read as
    instruction and answer. A row whose truth is missing or wrong is set aside with its reason (``Pool.rejected``).

    Raises PoolError as ``load_sources`` does, and where no row states its truth.
    """
    rows: list[Conversation] = []
    rejected: list[RejectedRow] = []
    spans: list[NoiseSpan] = []
    clean: list[Conversation | None] = []
    for source in sources:
        settings = _with_columns(source)
        pool = load_sources([settings])
        rejected += pool.rejected
        records = {record.number: record.row or {} for record in read_source(settings)}
        for row in pool:
            number = int(row.id.rsplit(":", 2)[1])
            try:
                found, clean_row = _truth_of_row(row, records[number], len(rows))
            except ValueError as error:
                text = " ".join(turn.content for turn in row.turns)[:200]
                rejected.append(RejectedRow(row.file, row.line, str(error), text))
                continue
            rows.append(replace(row, unread=tuple(key for key in row.unread if key not in TRUTH_KEYS)))
            spans += found
            clean.append(clean_row)
    if not rows:
        reasons = "; ".join(map(str, rejected[:3]))
        raise PoolError(f"no row states where its noise is: {reasons}")
    return TruthPool(Pool(tuple(rows), tuple(rejected)), tuple(spans), tuple(clean))


def changed_spans(text: str, clean: str) -> list[tuple[int, int]]:
    """Characters [start, end) of ``text`` that differ from ``clean``: whole words and single punctuation marks, rising.

    What ``clean`` has and ``text`` lacks is nowhere in ``text``, so it gives no span. Blank space is not compared.
    """
    words = list(_PIECES.finditer(text))
    match = SequenceMatcher(None, [word.group() for word in words], _PIECES.findall(clean), autojunk=False)
    changed = [(first, last) for operation, first, last, _, _ in match.get_opcodes() if operation != "equal"]
    return [(words[first].start(), words[last - 1].end()) for first, last in changed if first < last]


def _with_columns(source: SourceSettings) -> SourceSettings:
    """The source with its truth keys left to this reader, and ``prompt`` and ``response`` as instruction and answer."""
    source = source.model_copy(update={"ignore": (*source.ignore, *TRUTH_KEYS)})
    first = next((record.row for record in read_source(source) if record.row is not None), {})
    if {"prompt", "response"} <= first.keys() and not source.columns and source.format == "auto":
        return source.model_copy(update={"columns": (("instruction", "prompt"), ("output", "response"))})
    return source


def _truth_of_row(
    row: Conversation, record: Mapping[str, object], number: int
) -> tuple[list[NoiseSpan], Conversation | None]:
    """Spans of the row, which will be row ``number``, and its clean version. ValueError where the truth is at fault."""
    last = max((n for n, turn in enumerate(row.turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise ValueError("has no answer as text, so nothing in it can be marked; leave the row out")
    noise, clean = record.get("noise"), record.get("clean")
    if clean is not None and not isinstance(clean, str):
        raise ValueError(f"clean: expected the last answer as it should be, a text or null, found {clean!r:.40}")
    if noise is None and clean is None:
        raise ValueError(
            "truth missing: expected the key noise (a list of [start, end, kind], empty for a clean row) or clean (the "
            f"answer as it should be); add one, {_OTHERWISE}"
        )
    if noise is None:
        changed = changed_spans(row.turns[last].content, str(clean))
        spans = [NoiseSpan(number, last, start, end, "differs") for start, end in changed]
    elif isinstance(noise, list):
        spans = [_span(value, place, row, last, number) for place, value in enumerate(noise)]
        spans.sort(key=lambda span: (span.turn, span.start))
    else:
        raise ValueError(f"noise: expected a list of [start, end, kind], empty for a clean row, found {noise!r:.40}")
    if clean is not None:
        turns = list(row.turns)
        turns[last] = replace(turns[last], content=str(clean))
        return spans, replace(row, turns=tuple(turns))
    return spans, None if spans else row


def _span(value: object, place: int, row: Conversation, last: int, number: int) -> NoiseSpan:
    """The span at this ``place`` of the row's list. ValueError where it is none, or outside its turn's answer."""
    turn = last
    match value:
        case [int(start), int(end)]:
            kind = "noise"
        case [int(start), int(end), str(kind)]:
            pass
        case {"start": int(start), "end": int(end), **further}:
            kind, turn = further.get("kind", "noise"), further.get("turn", last)
        case _:
            start = end = kind = None
    answers = {n: len(t.content) for n, t in enumerate(row.turns) if t.role == "assistant"}
    length = answers.get(turn, 0) if type(turn) is int else 0
    if type(start) is int and type(end) is int and isinstance(kind, str) and 0 <= start < end <= length:
        return NoiseSpan(number, turn, start, end, kind)
    raise ValueError(
        f"noise[{place}]: expected [start, end, kind] with whole numbers 0 <= start < end <= {answers[last]} "
        f"(characters of turn {last}), or an object with start, end, kind and the turn of another answer, found "
        f"{value!r:.60}; correct the span"
    )
