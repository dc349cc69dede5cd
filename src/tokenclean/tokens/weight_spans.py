"""Token weights as characters of the messages: the same weights for any tokenizer.

Characters count from the start of a message's content, as the row gives it. The end token of an answer of n characters
has the place [n, n + 1), just behind the content. Thoughts and tool calls that the template writes around the content
have no place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.ragged import Ragged
from tokenclean.tokens.rendered_text import ContentSpan

if TYPE_CHECKING:
    from tokenclean.tokens.tokenize import TokenizedPool


@dataclass(frozen=True)
class WeightSpan:
    """Characters [start, end) of the content of message number ``message`` (from 0), and the loss weight of the tokens
    that they are in. The end token of a content of n characters is [n, n + 1)."""

    message: int
    start: int
    end: int
    weight: float


class PlacedTokens(NamedTuple):
    """The tokens that share a character with an answer's content or its end token, K of them.

    ``tokens``: int64 (K,), their indices in the row. ``start``/``end``: int64 (K,), the characters [start, end) of the
    content that each stands for, with the end token's place.
    """

    tokens: np.ndarray
    start: np.ndarray
    end: np.ndarray


def place_tokens(content: ContentSpan, spans: np.ndarray) -> PlacedTokens:
    """Where a row's tokens are in one answer. ``spans``: integers (L, 2), the characters of the rendered text."""
    first, last = spans[:, 0].astype(np.int64), spans[:, 1].astype(np.int64)
    is_inside = (first < content.end) & (last > content.start)
    is_end = (first < content.end_token[1]) & (last > content.end_token[0])
    shift = content.skipped - content.start
    start = np.where(is_inside, np.maximum(first, content.start) + shift, content.length)
    end = np.where(is_end, content.length + 1, np.minimum(last, content.end) + shift)
    tokens = np.flatnonzero(is_inside | is_end)
    return PlacedTokens(tokens, start[tokens], end[tokens])


def weights_in_spans(
    placed: PlacedTokens, length: int, spans: Iterable[tuple[int, int, float]], default: np.ndarray
) -> np.ndarray:
    """float32 (K,), the weight of each placed token in an answer of ``length`` characters.

    ``spans``: (start, end, weight). ``default``: float (K,), the weights outside of them. A token that touches several
    weights takes the smallest.
    """
    if not len(placed.tokens):
        return np.empty(0, np.float32)
    characters = np.full(length + 2, np.inf, dtype=np.float32)
    for start, end, weight in spans:
        characters[start:end] = np.minimum(characters[start:end], weight)
    borders = np.stack([placed.start, placed.end], axis=1).ravel()
    smallest = np.minimum.reduceat(characters, borders)[::2]
    is_whole = np.maximum.reduceat(characters, borders)[::2] < np.inf
    return np.where(is_whole, smallest, np.minimum(smallest, default)).astype(np.float32)


def spans_of_weights(tokens: TokenizedPool, weights: Ragged) -> list[tuple[WeightSpan, ...]]:
    """The spans of each row that are not trained with weight 1, ascending and without overlap.

    ``weights``: float, aligned with ``input_ids``. Neighbouring tokens of one weight make one span. An answer without
    a target is one span of weight 0, and so is what the cut at ``max_length`` left of an answer. Tokens without a
    place, and those that share a character with a token of a smaller weight, are not expressed exactly: compare
    ``weights_of_spans``. A row that came tokenized has no text, so no spans. Raises ValueError for weights that are
    not aligned or not finite.
    """
    tokens.input_ids.check_aligned(weights)
    is_trained = tokens.is_trained
    if not np.isfinite(weights.values[is_trained.values]).all():
        raise ValueError("the weight of every trained token must be finite")
    return [tuple(_row_spans(tokens, row, is_trained[row], weights[row])) for row in range(len(tokens))]


def weights_of_spans(tokens: TokenizedPool, spans: Sequence[Sequence[WeightSpan]], default: Ragged) -> Ragged:
    """The weights that each row's spans give its trained tokens, float32, aligned with ``input_ids``.

    ``default``: float, aligned with ``input_ids``, the weight where no span covers a token, and of every token that is
    not trained (``TokenizedPool.is_trained``). A token that touches several weights takes the smallest. Raises
    ValueError where ``spans`` or ``default`` have other rows than ``tokens``, PoolError for a span that is in no answer
    of its row.
    """
    tokens.input_ids.check_aligned(default)
    if len(spans) != len(tokens):
        raise ValueError(f"expected spans of {len(tokens):,} rows, as many as tokens has, found {len(spans):,}")
    values = default.values.astype(np.float32)
    offsets = tokens.input_ids.offsets
    for row, own in enumerate(spans):
        of_message: dict[int, list[tuple[int, int, float]]] = {}
        for span in own:
            _check_span(span, tokens, row)
            of_message.setdefault(span.message, []).append((span.start, span.end, span.weight))
        for content in tokens.contents[row]:
            if content.turn in of_message:
                placed = place_tokens(content, _characters(tokens, row))
                places = offsets[row] + placed.tokens
                values[places] = weights_in_spans(placed, content.length, of_message[content.turn], values[places])
    return default.with_values(np.where(tokens.is_trained.values, values, default.values).astype(np.float32))


def _row_spans(tokens: TokenizedPool, row: int, is_trained: np.ndarray, weights: np.ndarray) -> Iterator[WeightSpan]:
    characters = _characters(tokens, row)
    for content in tokens.contents[row]:
        placed = place_tokens(content, characters)
        targets = np.flatnonzero(is_trained[placed.tokens])
        if not len(targets):
            yield WeightSpan(content.turn, content.skipped, content.length + 1, 0.0)
            continue
        start, end = placed.start[targets], placed.end[targets]
        for first, last, weight in _runs(start, end, weights[placed.tokens[targets]]):
            yield WeightSpan(content.turn, first, last, weight)
        done = int(placed.end.max())
        if tokens.is_truncated[row] and done <= content.length and content.end_token[1] > characters[-1, 1]:
            yield WeightSpan(content.turn, done, content.length + 1, 0.0)


def _runs(start: np.ndarray, end: np.ndarray, weights: np.ndarray) -> list[tuple[int, int, float]]:
    """(start, end, weight) of each run of tokens with one weight other than 1; a character that two runs share goes to
    the smaller weight."""
    borders = np.flatnonzero(np.diff(weights)) + 1
    firsts, lasts = np.concatenate([[0], borders]), np.concatenate([borders - 1, [len(weights) - 1]])
    runs: list[tuple[int, int, float]] = []
    for first, last in zip(firsts, lasts, strict=True):
        # The shortest decimal number that is this float32 again, so 0.1 and not 0.10000000149.
        begin, finish, weight = int(start[first]), int(end[last]), float(str(weights[first]))
        while runs and runs[-1][1] > begin and weight < runs[-1][2]:
            before = runs.pop()
            if before[0] < begin:
                runs.append((before[0], begin, before[2]))
        if runs:
            begin = max(begin, runs[-1][1])
        if begin < finish:
            runs.append((begin, finish, weight))
    return [run for run in runs if run[2] != 1]


def _characters(tokens: TokenizedPool, row: int) -> np.ndarray:
    return np.stack([tokens.char_start[row], tokens.char_end[row]], axis=1)


def _check_span(span: WeightSpan, tokens: TokenizedPool, row: int) -> None:
    content = next((content for content in tokens.contents[row] if content.turn == span.message), None)
    if content is None:
        known = ", ".join(str(content.turn) for content in tokens.contents[row])
        raise PoolError(
            f"row {tokens.ids[row]!r}: a span is in message {span.message}, but its answers are "
            f"{f'messages {known}' if known else 'tokens without text'}; leave the span out"
        )
    if not 0 <= span.start < span.end <= content.length + 1 or not np.isfinite(span.weight):
        raise PoolError(
            f"row {tokens.ids[row]!r}: message {span.message}: expected 0 <= start < end <= {content.length + 1}, the "
            f"content's length and one for the end token, and a finite weight, found {span}"
        )
