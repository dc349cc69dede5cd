"""Token ids and (noisy) token labels of a pool, from one tokenization of each whole text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow
from tokenclean.pool.intake import LeftOutThoughts, RenderedRows
from tokenclean.ragged import Ragged
from tokenclean.recipe import TokensSettings
from tokenclean.token_table import TokenTable
from tokenclean.tokens.encoding import encode, exact_offset_backend
from tokenclean.tokens.labelled_row import LabelledRow, empty_row
from tokenclean.tokens.rendered_text import ContentSpan, Rendered
from tokenclean.tokens.templates import check_template, render
from tokenclean.tokens.tokenizer_template.chat import DEFAULT_DATE, reads_clock
from tokenclean.tokens.training_targets import label_text, label_tokens, train_last_turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_BATCH_ROWS = 512


@dataclass(frozen=True)
class TokenizedPool:
    """The pool in tokens; every Ragged has one row a conversation, in the pool's order, aligned token by token.

    ``input_ids``: int64. ``is_response``: bool, True where the token is a training target before cleaning (ỹ, §3.2);
    never True at position 0. ``char_start``/``char_end``: int32, the characters of the rendered text that the token
    stands for. ``ids``/``sources``: the rows' ids and source names. ``contents``: where each assistant turn's content
    is in the text. ``is_truncated``: bool (N,), True where the row was cut at ``max_length``. ``unusable``: rows
    without any target (their row here stays, with no token labelled), each with its reason, in row order. A row that
    came tokenized has no text: its characters are all 0 and it has no contents.
    ``original_ids``: the rows' own ids, empty texts for none. ``weight``: float32, the loss weights that the data state
    (0 < w <= 1 on targets, −1 <= w < 0 on tokens to unlearn, which are no targets, 0 elsewhere); None where every
    target weighs 1 and nothing is unlearned. ``notes``: what rendering did to rows so that they can be used -> rows.
    ``left_out``: thoughts of earlier turns that the chat template does not write.
    """

    input_ids: Ragged
    is_response: Ragged
    char_start: Ragged
    char_end: Ragged
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    contents: tuple[tuple[ContentSpan, ...], ...]
    is_truncated: np.ndarray
    unusable: tuple[RejectedRow, ...]
    original_ids: tuple[str, ...] = ()
    weight: Ragged | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    left_out: LeftOutThoughts = field(default_factory=LeftOutThoughts)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def rendered_rows(self) -> RenderedRows:
        """What became of the rows."""
        targets = int(np.count_nonzero(self.is_response.values))
        return RenderedRows(len(self), self.unusable, self.notes, targets, self.left_out)

    @property
    def is_trained(self) -> Ragged:
        """The targets and the tokens to unlearn, bool, aligned with ``input_ids``."""
        if self.weight is None:
            return self.is_response
        return self.is_response.with_values(self.is_response.values | (self.weight.values < 0))

    @property
    def is_cut(self) -> np.ndarray:
        """Rows cut at ``max_length`` that keep a token to train, bool (N,); those that lose all are ``unusable``."""
        return self.is_truncated & (self.is_trained.row_sums() > 0)

    def table(self, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """A table of these rows and further columns aligned with them."""
        everything = {"input_ids": self.input_ids, "is_response": self.is_response}
        everything |= {"loss_weight": self.weight} if self.weight is not None else {}
        return TokenTable(self.ids, self.sources, {**everything, **columns}, metadata, self.original_ids)

    def take(self, rows: np.ndarray | list[int]) -> TokenizedPool:
        """The given rows in the given order."""
        rows = np.asarray(rows, dtype=np.int64)

        def take(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(values[row] for row in rows)

        return replace(
            self,
            input_ids=self.input_ids.take(rows),
            is_response=self.is_response.take(rows),
            char_start=self.char_start.take(rows),
            char_end=self.char_end.take(rows),
            ids=take(self.ids),
            sources=take(self.sources),
            contents=take(self.contents),
            is_truncated=self.is_truncated[rows],
            original_ids=take(self.original_ids) if self.original_ids else (),
            weight=None if self.weight is None else self.weight.take(rows),
        )


def tokenize_pool(
    pool: Pool | Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "tulu",
    max_length: int = 2048,
    targets: str = "response",
    date: str = DEFAULT_DATE,
) -> TokenizedPool:
    """Render each conversation, tokenize the whole text once, and label its tokens by character offsets.

    ``targets``: ``response`` trains every assistant turn that its row does not exclude, ``last_turn`` the last one
    only, ``all`` every token including tags, prompts and excluded turns (the pretraining labels of §3.2). Position 0 is
    never a target. A row of plain text has targets under ``all`` only.

    A token is a target when all its characters are inside one target span (what an assistant says, with its end token);
    a token across a boundary is none. BOS comes first only if the tokenizer adds it itself. The text is cut at
    ``max_length`` tokens. Nothing is padded and no token is added to the vocabulary. Rows that came tokenized keep
    their ids and labels up to the cut; of their labels ``last_turn`` takes the last run. ``date``: today, for chat
    templates that ask (``reads_clock``).

    Every conversation keeps its row: one that cannot be rendered or has no target left has no labels and is listed in
    ``unusable``. Raises TemplateError if the tokenizer cannot serve the template, PoolError for a tokenizer without
    offsets (a "slow" one), ValueError for max_length < 2, unknown targets and a date that is none.
    """
    check_template(tokenizer, template)
    options = {"template": template, "max_length": max_length, "targets": targets, "date": date}
    labeller = _Labeller(tokenizer, exact_offset_backend(tokenizer), TokensSettings.model_validate(options))
    origins: list[tuple[str, str, str]] = []
    rows: list[LabelledRow] = []
    unusable: list[RejectedRow] = []
    for batch in batches(pool, _BATCH_ROWS):
        for conversation, row in zip(batch, labeller.label(batch), strict=True):
            origins.append((conversation.id, conversation.source, conversation.original_id))
            rows.append(row)
            if row.reason:
                text = " ".join(turn.content for turn in conversation.turns)[:200]
                unusable.append(RejectedRow(conversation.file, conversation.line, row.reason, text))
    return TokenizedPool(
        input_ids=Ragged.from_rows([row.input_ids for row in rows], np.int64),
        is_response=Ragged.from_rows([row.is_response for row in rows], np.bool_),
        char_start=Ragged.from_rows([row.spans[:, 0] for row in rows], np.int32),
        char_end=Ragged.from_rows([row.spans[:, 1] for row in rows], np.int32),
        ids=tuple(row_id for row_id, _, _ in origins),
        sources=tuple(source for _, source, _ in origins),
        contents=tuple(row.contents for row in rows),
        is_truncated=np.array([row.is_truncated for row in rows], dtype=bool),
        unusable=tuple(unusable),
        original_ids=tuple(original_id for _, _, original_id in origins),
        weight=_joined_weights(rows),
        notes=labeller.notes,
        left_out=labeller.left_out,
    )


@dataclass
class _Labeller:
    """Renders, tokenizes and labels conversations. ``notes``/``left_out``: counts over them, as of TokenizedPool."""

    tokenizer: PreTrainedTokenizerBase
    backend: Tokenizer
    settings: TokensSettings
    notes: Counter[str] = field(default_factory=Counter)
    left_out: LeftOutThoughts = field(default_factory=LeftOutThoughts)

    def label(self, batch: list[Conversation]) -> Iterator[LabelledRow]:
        """The row of each conversation."""
        if self.settings.targets == "last_turn":
            batch = [train_last_turn(conversation) for conversation in batch]
        texts = [self._render(conversation) for conversation in batch]
        encodings = encode(self.backend, [text for text in texts if isinstance(text, Rendered)])
        for conversation, text in zip(batch, texts, strict=True):
            if isinstance(text, Rendered):
                self._count(text)
                turns = conversation.turns if conversation.has_weights else ()
                yield label_text(*next(encodings), text, self.settings, turns)
            elif isinstance(text, LabelledTokens):
                yield label_tokens(text, self._largest_id, self.settings)
            else:
                yield empty_row(text)
            if self._reads_clock and conversation.kind == "chat":
                date = self.settings.date
                self.notes[f"today's date in the chat template taken to be {date} (tokens.date, --date)"] += 1

    @cached_property
    def _largest_id(self) -> int:
        return max(self.backend.get_vocab().values())

    @cached_property
    def _reads_clock(self) -> bool:
        return self.settings.template == "tokenizer" and reads_clock(self.tokenizer)

    def _render(self, conversation: Conversation) -> Rendered | LabelledTokens | str:
        """The conversation as text, its tokens if it came tokenized, or why it has neither."""
        if conversation.tokens is not None:
            return conversation.tokens
        if conversation.kind == "text" and self.settings.targets != "all":
            return "plain text holds no answer to train on; to train on every token, set tokens.targets: all"
        try:
            return render(conversation, self.tokenizer, self.settings.template, self.settings.date)
        except TemplateError as error:
            return str(error)

    def _count(self, rendered: Rendered) -> None:
        self.notes.update(dict.fromkeys(rendered.notes, 1))
        # With last_turn, earlier answers are context, which has no thoughts at inference either.
        if rendered.dropped_thoughts and self.settings.targets != "last_turn":
            thoughts = self.backend.encode_batch(list(rendered.dropped_thoughts), add_special_tokens=False)
            tokens = sum(len(thought.ids) for thought in thoughts)
            self.left_out += LeftOutThoughts(1, len(thoughts), tokens)


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """The rows in lists of ``size``; the last one may be shorter."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def _joined_weights(rows: Sequence[LabelledRow]) -> Ragged | None:
    if all(row.weight is None for row in rows):
        return None
    weights = [row.is_response.astype(np.float32) if row.weight is None else row.weight for row in rows]
    return Ragged.from_rows(weights, np.float32)


def tokens_touching(tokens: TokenizedPool, spans: Iterable[tuple[int, int, int, int]]) -> Ragged:
    """Response tokens that share a character with a span of some turn's content; bool, aligned with ``input_ids``.

    ``spans``: (row, turn, start, end) with characters [start, end) of that turn's content. Parts that the template
    stripped or truncation cut away touch nothing.
    """
    return _marked(tokens, (touched for span in spans for touched in _touched_by(tokens, *span)))


def first_tokens_touching(tokens: TokenizedPool, spans: Iterable[tuple[int, int, int, int]]) -> Ragged:
    """Of the response tokens that each span touches the first; bool, aligned. Arguments as for ``tokens_touching``."""
    return _marked(tokens, (touched[:1] for span in spans for touched in _touched_by(tokens, *span)))


def _touched_by(tokens: TokenizedPool, row: int, turn: int, start: int, end: int) -> Iterator[np.ndarray]:
    """Indices into the flat columns, rising, of the response tokens that one span touches, once for each place in the
    text where its turn's content is."""
    for content in tokens.contents[row]:
        first, last = content.characters(start, end)
        if content.turn == turn and first < last:
            overlap = (tokens.char_start[row] < last) & (tokens.char_end[row] > first)
            yield np.flatnonzero(overlap & tokens.is_response[row]) + int(tokens.input_ids.offsets[row])


def _marked(tokens: TokenizedPool, parts: Iterable[np.ndarray]) -> Ragged:
    marks = np.zeros(len(tokens.input_ids.values), dtype=bool)
    for indices in parts:
        marks[indices] = True
    return tokens.input_ids.with_values(marks)
