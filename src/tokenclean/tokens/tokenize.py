"""Token ids and (noisy) token labels of a pool, from one tokenization of each whole text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.errors import PoolError, TemplateError
from tokenclean.pool.conversation import Conversation, LabelledTokens, Pool, RejectedRow
from tokenclean.pool.intake import LeftOutThoughts, RenderedRows
from tokenclean.ragged import Ragged
from tokenclean.token_table import TokenTable
from tokenclean.tokens.chat_messages import DEFAULT_DATE, reads_clock
from tokenclean.tokens.labels import TARGETS, LabelledRow, empty_row, label_text, label_tokens
from tokenclean.tokens.rendered_text import ContentSpan, Rendered
from tokenclean.tokens.template import check_template, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 512


@dataclass(frozen=True)
class TokenizedPool:
    """The pool in tokens; every Ragged has one row a conversation, in the pool's order, aligned token by token.

    ``input_ids``: int64. ``is_response``: bool, True where the token is a training target before cleaning (ỹ, §3.2);
    never True at position 0. ``char_start``/``char_end``: int32, the characters of the rendered text that the token
    stands for. ``ids``/``sources``: the rows' ids and source names. ``contents``: where each assistant turn's content
    lies in the text. ``is_truncated``: bool (N,), True where the row was cut at ``max_length``. ``unusable``: rows
    without any target (their row here stays, with no token labelled), each with its reason, in row order. A row that
    came tokenized has no text: its characters are all 0 and it has no contents. ``targets``: what was labelled.
    ``original_ids``: the rows' own ids, empty texts for none. ``weight``: float32, the loss weights that the data state
    (0 < w <= 1 on targets, 0 elsewhere); None where every target weighs 1. ``notes``: what rendering did to rows so
    that they can be used -> rows. ``left_out``: thoughts of earlier turns that the chat template does not write.
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
    template: str
    max_length: int
    targets: str = "response"
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
    def is_cut(self) -> np.ndarray:
        """Rows cut at ``max_length`` that keep a target, bool (N,); those that lose every target are ``unusable``."""
        return self.is_truncated & (self.is_response.row_sums() > 0)

    def table(self, metadata: Mapping[str, object], **columns: Ragged) -> TokenTable:
        """A table of these rows and further columns aligned with them."""
        everything = {"input_ids": self.input_ids, "is_response": self.is_response}
        everything |= {"loss_weight": self.weight} if self.weight is not None else {}
        return TokenTable(self.ids, self.sources, {**everything, **columns}, metadata, self.original_ids)

    def take(self, rows: np.ndarray | list[int]) -> TokenizedPool:
        """The given rows in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        return TokenizedPool(
            input_ids=self.input_ids.take(rows),
            is_response=self.is_response.take(rows),
            char_start=self.char_start.take(rows),
            char_end=self.char_end.take(rows),
            ids=tuple(self.ids[r] for r in rows),
            sources=tuple(self.sources[r] for r in rows),
            contents=tuple(self.contents[r] for r in rows),
            is_truncated=self.is_truncated[rows],
            unusable=self.unusable,
            template=self.template,
            max_length=self.max_length,
            targets=self.targets,
            original_ids=tuple(self.original_ids[r] for r in rows) if self.original_ids else (),
            weight=None if self.weight is None else self.weight.take(rows),
            notes=self.notes,
            left_out=self.left_out,
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
    only, ``all`` every token, tags and prompts and excluded turns included (the pretraining labels of §3.2). Position
    0 is never a target. A row of plain text has targets under ``all`` only.

    A token is a target when all its characters lie inside one target span (what an assistant says, with its end
    token); a token across a boundary is none. BOS stands in front only where the tokenizer adds it itself. The text
    is cut at ``max_length`` tokens. Nothing is padded and no token is added to the vocabulary. Rows that came
    tokenized keep their ids and labels up to the cut; of their labels ``last_turn`` takes the last run. ``date``:
    today, for chat templates that ask (``reads_clock``).

    Every conversation keeps its row: one that cannot be rendered or has no target left is empty of labels and listed
    in ``unusable``. Raises TemplateError where the tokenizer cannot serve the template, PoolError for a
    tokenizer without offsets (a "slow" one), ValueError for max_length < 2 and for unknown targets.
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2 tokens, got {max_length}")
    if targets not in TARGETS:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {targets!r}")
    check_template(tokenizer, template)
    backend = _exact_offset_backend(tokenizer)
    largest_id = max(backend.get_vocab().values())
    ids: list[str] = []
    original_ids: list[str] = []
    sources: list[str] = []
    rows: list[LabelledRow] = []
    unusable: list[RejectedRow] = []
    notes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    says_date = template == "tokenizer" and reads_clock(tokenizer)
    for batch in _batches(pool):
        if targets == "last_turn":
            batch = [_train_last_turn(conversation) for conversation in batch]
        texts = [_render(conversation, tokenizer, template, targets, date) for conversation in batch]
        encodings = _encode(backend, [text for text in texts if isinstance(text, Rendered)])
        for conversation, text in zip(batch, texts, strict=True):
            if isinstance(text, Rendered):
                notes.update(dict.fromkeys(text.notes, 1))
                if targets != "last_turn":  # earlier answers are context then, as at inference
                    left_out.update(_count_left_out(backend, text))
                turns = conversation.turns if conversation.has_weights else ()
                row = label_text(*next(encodings), text, max_length=max_length, targets=targets, turns=turns)
            elif isinstance(text, LabelledTokens):
                row = label_tokens(text, largest_id=largest_id, max_length=max_length, targets=targets)
            else:
                row = empty_row(text)
            if says_date and conversation.kind == "chat":
                notes[f"today's date in the chat template taken to be {date} (tokens.date, --date)"] += 1
            ids.append(conversation.id)
            original_ids.append(conversation.original_id)
            sources.append(conversation.source)
            rows.append(row)
            if row.reason:
                unusable.append(_unusable(conversation, row.reason))

    return TokenizedPool(
        input_ids=Ragged.from_rows([row.input_ids for row in rows], np.int64),
        is_response=Ragged.from_rows([row.is_response for row in rows], np.bool_),
        char_start=Ragged.from_rows([row.spans[:, 0] for row in rows], np.int32),
        char_end=Ragged.from_rows([row.spans[:, 1] for row in rows], np.int32),
        ids=tuple(ids),
        sources=tuple(sources),
        contents=tuple(row.contents for row in rows),
        is_truncated=np.array([row.is_truncated for row in rows], dtype=bool),
        unusable=tuple(unusable),
        template=template,
        max_length=max_length,
        targets=targets,
        original_ids=tuple(original_ids),
        weight=_joined_weights(rows),
        notes=notes,
        left_out=LeftOutThoughts(left_out["rows"], left_out["turns"], left_out["tokens"]),
    )


def _count_left_out(backend: Any, rendered: Rendered) -> dict[str, int]:
    """Row, turns and tokens of the thoughts that the template leaves out."""
    if not rendered.dropped_thoughts:
        return {}
    encodings = backend.encode_batch(list(rendered.dropped_thoughts), add_special_tokens=False)
    return {"rows": 1, "turns": len(encodings), "tokens": sum(len(encoding.ids) for encoding in encodings)}


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
    touched = np.zeros(len(tokens.input_ids.values), dtype=bool)
    offsets = tokens.input_ids.offsets
    for row, turn, start, end in spans:
        for content in tokens.contents[row]:
            if content.turn != turn:
                continue
            first = max(content.start + start - content.skipped, content.start)
            last = min(content.start + end - content.skipped, content.end)
            if first < last:
                overlap = (tokens.char_start[row] < last) & (tokens.char_end[row] > first)
                touched[offsets[row] : offsets[row + 1]] |= overlap
    return Ragged(touched & tokens.is_response.values, offsets)


def _render(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: str, targets: str, date: str
) -> Rendered | LabelledTokens | str:
    """The conversation as text, its tokens where it came tokenized, or why it has neither."""
    if conversation.tokens is not None:
        return conversation.tokens
    if conversation.kind == "text" and targets != "all":
        return "plain text holds no answer to train on; to train on every token, set tokens.targets: all"
    try:
        return render(conversation, tokenizer, template, date)
    except TemplateError as error:
        return str(error)


def _train_last_turn(conversation: Conversation) -> Conversation:
    earlier = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant"][:-1]
    turns = (replace(t, is_trained=False) if i in earlier else t for i, t in enumerate(conversation.turns))
    return replace(conversation, turns=tuple(turns))


def _batches(pool: Pool | Iterable[Conversation]) -> Iterator[list[Conversation]]:
    batch: list[Conversation] = []
    for conversation in pool:
        batch.append(conversation)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _unusable(conversation: Conversation, reason: str) -> RejectedRow:
    text = " ".join(turn.content for turn in conversation.turns)
    return RejectedRow(conversation.file, conversation.line, reason, text[:200])


def _exact_offset_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy of the tokenizer's Rust backend whose offsets cover leading spaces too, without truncation or padding.

    Byte-level tokenizers report " word" by the offsets of "word" (``trim_offsets``): a token across a boundary at
    that space would look as if it stood inside.
    """
    if not tokenizer.is_fast:
        raise PoolError(
            f"{type(tokenizer).__name__} reports no character offsets, which the token labels need; "
            "load the model's fast tokenizer (tokenizer.json)"
        )
    original: Any = tokenizer.backend_tokenizer
    return _untrimmed_backend(original.to_str())


@lru_cache(maxsize=1)  # a backend that is let go leaves some of its memory behind, which adds up over shards
def _untrimmed_backend(serialized: str) -> Any:
    from tokenizers import Tokenizer

    state = json.loads(serialized)
    _untrim(state.get("post_processor"))
    backend = Tokenizer.from_str(json.dumps(state))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _untrim(processor: dict[str, Any] | None) -> None:
    if processor is None:
        return
    if "trim_offsets" in processor:
        processor["trim_offsets"] = False
    for inner in processor.get("processors", []):
        _untrim(inner)


def _encode(backend: Any, rendered: list[Rendered]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids (int64, L) and character spans (int32, L×2) of each text.

    What the tokenizer itself puts in front (BOS) stays where ``adds_bos``; what it appends is left out, since the
    text ends with its own EOS. An added token that swallows the whitespace beside it (Phi-3's ``<|end|>``) spans its
    own characters only, or the whitespace would carry it across the target's boundary.
    """
    swallowing = [i for i, t in backend.get_added_tokens_decoder().items() if t.lstrip or t.rstrip]
    encodings = backend.encode_batch([r.text for r in rendered], add_special_tokens=True)
    for row, encoding in zip(rendered, encodings, strict=True):
        token_ids = np.array(encoding.ids, dtype=np.int64)
        spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        for position in np.flatnonzero(np.isin(token_ids, swallowing)):
            start, end = spans[position]
            covered = row.text[start:end]
            spans[position] = start + len(covered) - len(covered.lstrip()), start + len(covered.rstrip())
        added = np.array(encoding.special_tokens_mask, dtype=bool) & (spans[:, 0] == spans[:, 1])
        if len(added) and not added.all():
            first = int(np.argmin(added))
            last = len(added) - int(np.argmin(added[::-1]))
            kept = slice(0 if row.adds_bos else first, last)
            token_ids, spans = token_ids[kept], spans[kept]
        yield token_ids, spans
