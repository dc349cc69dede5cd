"""Data into rows to audit: conversations as tokenization labels them, tokenized rows with the labels that they have.

The pool's own reading sets a tokenized row aside if its labels are at fault, which is what an audit is about. So the
file is read twice in parallel: as the pool reads it, and raw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.pool import Conversation, Intake, Pool, RejectedRow, RenderedRows, stream_sources
from tokenclean.pool.conversation import Kind
from tokenclean.pool.formats import RowError, detect_format, read_column
from tokenclean.pool.formats.field_types import read_list
from tokenclean.pool.formats.row_options import map_columns
from tokenclean.pool.reading import Record
from tokenclean.pool.sources import read_source
from tokenclean.recipe import SourceSettings
from tokenclean.tokens.audit.audit_row import UNTRAINED, Answer, AuditRow
from tokenclean.tokens.audit.vocabulary import Vocabulary
from tokenclean.tokens.rendered_text import Rendered
from tokenclean.tokens.templates import render
from tokenclean.tokens.tokenize import TokenizedPool, batches, tokenize_pool
from tokenclean.tokens.turn_markers import find_headers

_BATCH_ROWS = 1024


@dataclass
class RowReader:
    """Reads rows to audit, in the memory of a batch. ``template``, ``max_length``, ``date``: as for ``tokenize_pool``.

    ``read``/``rendered``: what became of the rows so far, as they were read and as they were rendered.
    """

    vocabulary: Vocabulary
    template: str
    max_length: int
    date: str
    read: Intake = field(default_factory=Intake)
    rendered: list[RenderedRows] = field(default_factory=list)

    @property
    def intake(self) -> Intake:
        """Counts of all rows so far."""
        return self.read.after_rendering(*self.rendered)

    def read_sources(self, sources: Iterable[SourceSettings], max_rows: int | None = None) -> Iterator[AuditRow]:
        """The rows of the sources in order, ``max_rows`` of them or all.

        Raises as ``load_pool`` does, but reads a source whose rows are all unusable to its end.
        """
        entries = chain.from_iterable(map(self._entries, sources))
        return self._tokenized(islice(entries, max_rows))

    def read_pool(self, pool: Pool | Iterable[Conversation]) -> Iterator[AuditRow]:
        """The conversations of a pool in order, then its rejected rows."""
        rejected = pool.rejected if isinstance(pool, Pool) else ()
        return self._tokenized(map(self._entry, chain(pool, rejected)))

    def _entries(self, settings: SourceSettings) -> Iterator[Conversation | AuditRow]:
        """A conversation that is still to be labelled, or a row that came with its labels or is unusable."""
        may_hold_tokens = settings.format in ("auto", "tokens")  # each record is then one row
        records = _records(settings) if may_hold_tokens else repeat(None)
        count = usable = 0
        try:
            for row, record in zip(stream_sources([settings], is_first_reading=False), records, strict=False):
                count += 1
                usable += isinstance(row, Conversation)
                if isinstance(row, RejectedRow) and row.is_chosen:
                    self.read.add(row)  # left out by choice, which is no fault of the data
                    continue
                came_as_text = isinstance(row, Conversation) and row.tokens is None
                yield self._entry(row, _raw_tokens(record, settings) if record and not came_as_text else None)
        except PoolError:
            if usable or not count:
                raise
            for _ in _records(settings):  # raises if the file is at fault; each faulty row is a finding already
                pass

    def _entry(self, row: Conversation | RejectedRow, raw: _RawTokens | None = None) -> Conversation | AuditRow:
        if isinstance(row, Conversation) and row.tokens is None:
            self.read.add(row)
            return row
        if isinstance(row, RejectedRow) and raw is not None:
            self.read.readable += 1  # its labels are at fault, which the checks find
        else:
            self.read.add(row)
        place = f"{row.file}:{row.line}"
        if isinstance(row, RejectedRow):
            return self._token_row(place, place, raw) if raw else _unusable(place, row)
        return self._token_row(row.id, place, raw or _labelled(row))

    def _token_row(self, row_id: str, place: str, raw: _RawTokens) -> AuditRow:
        vocabulary = self.vocabulary
        is_token = raw.is_token & ~_trailing_padding(raw, vocabulary)
        padding_targets = int((raw.labels[~is_token] != UNTRAINED).sum())
        input_ids, labels = raw.input_ids[is_token], raw.labels[is_token]
        text, spans = vocabulary.spell(input_ids)
        headers = find_headers(text, lambda opener, place: vocabulary.is_token(opener, input_ids, spans[:, 0], place))
        return AuditRow(
            row_id, place, "tokens", input_ids, labels, spans, text, headers=headers, padding_targets=padding_targets
        )

    def _tokenized(self, entries: Iterable[Conversation | AuditRow]) -> Iterator[AuditRow]:
        for batch in batches(entries, _BATCH_ROWS):
            made: dict[int, AuditRow] = {}  # by the identity of its conversation
            # Plain text has no answer: the one way to train on it is all of it.
            for targets in ("response", "all"):
                chosen = [c for c in batch if isinstance(c, Conversation) and (c.kind == "text") == (targets == "all")]
                if chosen:
                    tokens = tokenize_pool(
                        chosen,
                        self.vocabulary.tokenizer,
                        template=self.template,
                        max_length=self.max_length,
                        targets=targets,
                        date=self.date,
                    )
                    self.rendered.append(tokens.rendered_rows)
                    made |= zip(map(id, chosen), self._conversation_rows(chosen, tokens), strict=True)
            for entry in batch:
                yield entry if isinstance(entry, AuditRow) else made[id(entry)]

    def _conversation_rows(self, conversations: Sequence[Conversation], tokens: TokenizedPool) -> Iterator[AuditRow]:
        unusable = iter(tokens.unusable)
        for number, conversation in enumerate(conversations):
            input_ids, is_response = tokens.input_ids[number], tokens.is_response[number]
            fault = None if is_response.any() else next(unusable)
            if fault and not len(input_ids):
                yield _unusable(conversation.id, fault, conversation.kind)
                continue
            rendered = render(conversation, self.vocabulary.tokenizer, self.template, self.date)
            yield AuditRow(
                conversation.id,
                f"{conversation.file}:{conversation.line}",
                conversation.kind,
                input_ids,
                np.where(is_response, input_ids, UNTRAINED),
                np.stack([tokens.char_start[number], tokens.char_end[number]], axis=1).astype(np.int64),
                rendered.text,
                answers=_answers_of(rendered, self.vocabulary),
                conversation=conversation,
                is_cut=bool(tokens.is_truncated[number]),
            )


@dataclass(frozen=True, eq=False)
class _RawTokens:
    """``input_ids``, ``labels``: int64 (L,). ``is_token``: bool (L,), False for padding."""

    input_ids: np.ndarray
    labels: np.ndarray
    is_token: np.ndarray


def _records(settings: SourceSettings) -> Iterator[Record]:
    return islice(read_source(settings), settings.first_rows)


def _raw_tokens(record: Record, settings: SourceSettings) -> _RawTokens | None:
    """None if the record holds no ids with labels."""
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
    return _RawTokens(input_ids, labels, is_token)


def _integers(row: Mapping[str, object], key: str) -> np.ndarray:
    values = read_column(row, key, key)
    try:
        array = np.asarray(values if isinstance(values, np.ndarray) else read_list(row, key))
    except ValueError:  # rows of unequal length
        raise RowError(f"{key}: expected a list of integers") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise RowError(f"{key}: expected a list of integers")
    return array.astype(np.int64)


def _labelled(conversation: Conversation) -> _RawTokens:
    tokens = conversation.tokens
    assert tokens is not None
    labels = np.where(tokens.is_response, tokens.input_ids, UNTRAINED)
    return _RawTokens(tokens.input_ids, labels, np.ones(len(labels), dtype=bool))


def _trailing_padding(raw: _RawTokens, vocabulary: Vocabulary) -> np.ndarray:
    """bool (L,), True for the pad tokens at the end. If an end token is used as padding, the first one is none."""
    padding = np.zeros(len(raw.input_ids), dtype=bool)
    if vocabulary.pad is None:
        return padding
    places = np.flatnonzero(raw.is_token)
    others = np.flatnonzero(raw.input_ids[places] != vocabulary.pad)
    first = (int(others[-1]) + 1 if len(others) else 0) + (vocabulary.pad in vocabulary.ends)
    padding[places[first:]] = True
    return padding


def _unusable(row_id: str, row: RejectedRow, kind: Kind = "chat") -> AuditRow:
    ids, spans = np.empty(0, np.int64), np.empty((0, 2), np.int64)
    return AuditRow(row_id, f"{row.file}:{row.line}", kind, ids, ids, spans, row.text, fault=row.reason)


def _answers_of(rendered: Rendered, vocabulary: Vocabulary) -> tuple[Answer, ...]:
    answers = []
    for start, end in rendered.targets:
        written = rendered.text[start:end]
        end_token = max((text for text in vocabulary.end_texts if written.endswith(text)), key=len, default="")
        answers.append(Answer(start, start, end, end - len(end_token)))
    return tuple(answers)
