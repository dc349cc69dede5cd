"""Data into rows to audit: conversations as tokenization labels them, tokenized rows with their labels as they stand.

The pool's own reading sets a tokenized row aside where its labels are at fault, which is what an audit is about. So
the file is read twice in step: as the pool reads it, and raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any, TypeVar

import numpy as np

from tokenclean.errors import PoolError, TemplateError
from tokenclean.pool import Conversation, Intake, Pool, RejectedRow, RenderedRows, stream_sources
from tokenclean.pool.conversation import Kind
from tokenclean.pool.formats import RowError, detect_format, read_column
from tokenclean.pool.formats.column_mapping import map_columns
from tokenclean.pool.formats.field_types import read_list
from tokenclean.pool.reading import Record
from tokenclean.pool.sources import read_source
from tokenclean.recipe import SourceSettings
from tokenclean.tokens.audit.audit_row import UNTRAINED, Answer, AuditRow
from tokenclean.tokens.audit.vocabulary import Vocabulary
from tokenclean.tokens.rendered_text import Rendered
from tokenclean.tokens.role_markers import find_headers
from tokenclean.tokens.rendering import render
from tokenclean.tokens.tokenize import TokenizedPool, tokenize_pool

_Row = TypeVar("_Row", Conversation, RejectedRow)

_BATCH_ROWS = 1024
_NO_IDS = np.empty(0, np.int64)


def rows_of_sources(
    sources: Iterable[SourceSettings],
    vocabulary: Vocabulary,
    *,
    template: str,
    max_length: int,
    date: str,
    counts: RowCounts,
    max_rows: int | None = None,
) -> Iterator[AuditRow]:
    """The rows of the sources in order, ``max_rows`` of them or all, in the memory of a batch.

    ``counts``: gets what becomes of them. Raises as ``load_pool`` does, save that a source whose rows are all unusable
    is read to its end.
    """
    entries = chain.from_iterable(_entries(settings, vocabulary, counts) for settings in sources)
    return _tokenized(islice(entries, max_rows), vocabulary, template, max_length, date, counts)


def rows_of_pool(
    pool: Pool | Iterable[Conversation],
    vocabulary: Vocabulary,
    *,
    template: str,
    max_length: int,
    date: str,
    counts: RowCounts,
) -> Iterator[AuditRow]:
    """The conversations of a pool in order, then its rejected rows. ``counts``: gets what becomes of them."""
    rejected = pool.rejected if isinstance(pool, Pool) else ()
    entries = chain(
        (counts.add(c) if c.tokens is None else _labelled(counts.add(c), vocabulary) for c in pool),
        (_set_aside(counts.add(row)) for row in rejected),
    )
    return _tokenized(entries, vocabulary, template, max_length, date, counts)


@dataclass
class RowCounts:
    """What became of the rows: as they were read, and as they were rendered."""

    read: Intake = field(default_factory=Intake)
    rendered: list[RenderedRows] = field(default_factory=list)

    def add(self, row: _Row) -> _Row:
        """Count a row that was read, and give it back."""
        self.read.add(row)
        return row

    @property
    def intake(self) -> Intake:
        """Of everything counted so far."""
        return self.read.after_rendering(*self.rendered)


def _entries(settings: SourceSettings, vocabulary: Vocabulary, counts: RowCounts) -> Iterator[Conversation | AuditRow]:
    """A conversation that tokenization is still to label, or a row that came with its labels or is unusable."""
    may_hold_tokens = settings.format in ("auto", "tokens")  # a row is then a record, one by one
    records = _records(settings) if may_hold_tokens else repeat(None)
    count = usable = 0
    try:
        for row, record in zip(stream_sources([settings], is_first_reading=False), records, strict=False):
            count += 1
            usable += isinstance(row, Conversation)
            if isinstance(row, RejectedRow) and row.is_chosen:
                counts.read.add(row)  # left out by choice, which is no fault of the data
                continue
            yield _entry(row, record, settings, vocabulary, counts)
    except PoolError:
        if usable or not count:
            raise
        for _ in _records(settings):  # raises where the file is at fault, and not each of its rows, told by itself
            pass


def _entry(
    row: Conversation | RejectedRow,
    record: Record | None,
    settings: SourceSettings,
    vocabulary: Vocabulary,
    counts: RowCounts,
) -> Conversation | AuditRow:
    if isinstance(row, Conversation) and row.tokens is None:
        return counts.add(row)
    raw = None if record is None else _raw_tokens(record, settings)
    if raw is not None:
        if isinstance(row, Conversation):
            counts.add(row)
        else:  # its labels are at fault, which the checks tell
            counts.read.readable += 1
        place = f"{row.file}:{row.line}"
        return _token_row(row.id if isinstance(row, Conversation) else place, place, *raw, vocabulary)
    counts.read.add(row)
    return _set_aside(row) if isinstance(row, RejectedRow) else _labelled(row, vocabulary)


def _records(settings: SourceSettings) -> Iterator[Record]:
    return islice(read_source(settings), settings.first_rows)


def _raw_tokens(record: Record, settings: SourceSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Ids, labels (int64, L) and whether each position is a token (bool, L); None where the row holds no such."""
    if record.row is None:
        return None
    try:
        row = map_columns(record.row, dict(settings.columns))
        if (detect_format(row) if settings.format == "auto" else settings.format) != "tokens":
            return None
        input_ids, labels = _integers(row, "input_ids"), _integers(row, "labels")
        is_token = np.ones(len(input_ids), dtype=bool)
        if row.get("attention_mask") is not None:
            is_token = _integers(row, "attention_mask") != 0
    except RowError:
        return None
    if not len(input_ids) == len(labels) == len(is_token) or (input_ids[is_token] < 0).any():
        return None
    return input_ids, labels, is_token


def _integers(row: Mapping[str, Any], key: str) -> np.ndarray:
    values = read_column(row, key, key)
    try:
        array = np.asarray(values if isinstance(values, np.ndarray) else read_list(row, key))
    except ValueError:  # rows of unequal length
        raise RowError(f"{key}: expected a list of integers") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise RowError(f"{key}: expected a list of integers")
    return array.astype(np.int64)


def _labelled(conversation: Conversation, vocabulary: Vocabulary) -> AuditRow:
    tokens = conversation.tokens
    assert tokens is not None
    labels = np.where(tokens.is_response, tokens.input_ids, UNTRAINED)
    is_token = np.ones(len(labels), dtype=bool)
    place = f"{conversation.file}:{conversation.line}"
    return _token_row(conversation.id, place, tokens.input_ids, labels, is_token, vocabulary)


def _token_row(
    identity: str, place: str, input_ids: np.ndarray, labels: np.ndarray, is_token: np.ndarray, vocabulary: Vocabulary
) -> AuditRow:
    is_token = is_token & ~_trailing_padding(input_ids, is_token, vocabulary)
    padding_targets = int((labels[~is_token] != UNTRAINED).sum())
    input_ids, labels = input_ids[is_token], labels[is_token]
    text, spans = vocabulary.spell(input_ids)
    headers = find_headers(text, lambda opener, place: vocabulary.is_token(opener, input_ids, spans[:, 0], place))
    return AuditRow(
        identity, place, "tokens", input_ids, labels, spans, text, headers=headers, padding_targets=padding_targets
    )


def _trailing_padding(input_ids: np.ndarray, is_token: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """bool (L,), True for the pad tokens at the end. Where padding is done with an end token, the first one is none."""
    padding = np.zeros(len(input_ids), dtype=bool)
    if vocabulary.pad is None:
        return padding
    places = np.flatnonzero(is_token)
    others = np.flatnonzero(input_ids[places] != vocabulary.pad)
    first = (int(others[-1]) + 1 if len(others) else 0) + (vocabulary.pad in vocabulary.ends)
    padding[places[first:]] = True
    return padding


def _set_aside(row: RejectedRow) -> AuditRow:
    place = f"{row.file}:{row.line}"
    return _without_tokens(place, place, "chat", row.reason, row.text)


def _without_tokens(identity: str, place: str, kind: Kind, reason: str, text: str) -> AuditRow:
    return AuditRow(identity, place, kind, _NO_IDS, _NO_IDS, np.empty((0, 2), np.int64), text, fault=reason)


def _tokenized(
    entries: Iterable[Conversation | AuditRow],
    vocabulary: Vocabulary,
    template: str,
    max_length: int,
    date: str,
    counts: RowCounts,
) -> Iterator[AuditRow]:
    entries = iter(entries)
    while batch := list(islice(entries, _BATCH_ROWS)):
        made: dict[int, AuditRow] = {}
        # Plain text has no answer: the one way to train on it is all of it.
        for targets in ("response", "all"):
            chosen = {
                place: entry
                for place, entry in enumerate(batch)
                if isinstance(entry, Conversation) and (entry.kind == "text") == (targets == "all")
            }
            if chosen:
                tokens = tokenize_pool(
                    chosen.values(),
                    vocabulary.tokenizer,
                    template=template,
                    max_length=max_length,
                    targets=targets,
                    date=date,
                )
                counts.rendered.append(tokens.rendered_rows)
                made.update(
                    zip(chosen, _conversation_rows(list(chosen.values()), tokens, vocabulary, date), strict=True)
                )
        for place, entry in enumerate(batch):
            yield entry if isinstance(entry, AuditRow) else made[place]


def _conversation_rows(
    conversations: Sequence[Conversation], tokens: TokenizedPool, vocabulary: Vocabulary, date: str
) -> Iterator[AuditRow]:
    unusable = iter(tokens.unusable)
    for number, conversation in enumerate(conversations):
        input_ids, is_response = tokens.input_ids[number], tokens.is_response[number]
        place = f"{conversation.file}:{conversation.line}"
        fault = "" if is_response.any() else next(unusable).reason
        try:
            rendered = render(conversation, vocabulary.tokenizer, tokens.template, date) if len(input_ids) else None
        except TemplateError as error:  # pragma: no cover - tokenization has rendered it
            rendered, fault = None, str(error)
        if rendered is None:
            text = " ".join(turn.content for turn in conversation.turns)[:200]
            yield _without_tokens(conversation.id, place, conversation.kind, fault, text)
            continue
        yield AuditRow(
            conversation.id,
            place,
            conversation.kind,
            input_ids,
            np.where(is_response, input_ids, UNTRAINED),
            np.stack([tokens.char_start[number], tokens.char_end[number]], axis=1).astype(np.int64),
            rendered.text,
            answers=_answers_of(rendered, vocabulary),
            turns=conversation.turns,
            is_cut=bool(tokens.is_truncated[number]),
        )


def _answers_of(rendered: Rendered, vocabulary: Vocabulary) -> tuple[Answer, ...]:
    answers = []
    for start, end in rendered.targets:
        written = rendered.text[start:end]
        end_token = max((text for text in vocabulary.end_texts if written.endswith(text)), key=len, default="")
        answers.append(Answer(start, start, end, end - len(end_token)))
    return tuple(answers)
