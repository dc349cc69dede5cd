"""Conversations whose texts have weights: what forms that hold texts instead of tokens are written from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.pool.conversation import Conversation, LabelledTokens, Turn
from tokenclean.ragged import Ragged
from tokenclean.tokens.rendered_text import ContentSpan
from tokenclean.tokens.tokenize import TokenizedPool
from tokenclean.tokens.weight_spans import WeightSpan, place_tokens, spans_of_weights


@dataclass(frozen=True)
class WeightedTexts:
    """``conversations``: N rows as the pool gives them. ``tokens``: the same rows in tokens. ``weights``: float32,
    aligned with ``tokens.input_ids``, what the cleaned data set trains. ``tokenize``: makes tokens of other
    conversations as these were made."""

    conversations: tuple[Conversation, ...]
    tokens: TokenizedPool
    weights: Ragged
    tokenize: Callable[[Sequence[Conversation]], TokenizedPool]

    def with_weights(self, weights: Ragged) -> WeightedTexts:
        """The same rows with other weights."""
        return replace(self, weights=weights)

    def take(self, rows: Sequence[int]) -> WeightedTexts:
        """The given rows in the given order."""
        chosen = tuple(self.conversations[row] for row in rows)
        return replace(self, conversations=chosen, tokens=self.tokens.take(list(rows)), weights=self.weights.take(rows))

    def weighted_conversations(self) -> list[Conversation]:
        """The conversations with the weights as those of their messages and of characters of their contents.

        A message whose tokens all have the weight 0 is not trained. Another has a weight other than 1 where all its
        tokens without a place (thoughts, tool calls) have it, and it is not 0, which would be the whole message's. A
        row that came tokenized has the weights on its tokens.
        """
        return [
            _weigh_row(conversation, self.tokens, row, self.weights[row], spans)
            for row, (conversation, spans) in enumerate(
                zip(self.conversations, spans_of_weights(self.tokens, self.weights), strict=True)
            )
        ]

    def weights_read_from(self, conversations: Sequence[Conversation]) -> Ragged:
        """The weights that the tokens have when these conversations are tokenized in place of ours, float32, aligned
        with ``weights``; 0 in a row whose tokens are then others, such as one that the template cannot render."""
        tokens = self.tokenize(conversations)
        weight = tokens.is_response.map_values(lambda values: values.astype(np.float32))
        weight = weight if tokens.weight is None else tokens.weight
        rows = [
            weight[row] if np.array_equal(tokens.input_ids[row], ids) else np.zeros(len(ids), np.float32)
            for row, ids in enumerate(self.tokens.input_ids)
        ]
        return Ragged.from_rows(rows, np.float32)


def answer_of_token(tokens: TokenizedPool, row: int) -> np.ndarray:
    """For each token of a row the index in ``tokens.contents[row]`` of the answer that it belongs to, or of the next
    one; int64 (L,)."""
    ends = np.array([content.end_token[1] for content in tokens.contents[row]])
    return np.minimum(np.searchsorted(ends, tokens.char_end[row]), len(ends) - 1)


def _weigh_row(
    conversation: Conversation,
    tokens: TokenizedPool,
    row: int,
    weights: np.ndarray,
    spans: Sequence[WeightSpan],
) -> Conversation:
    if conversation.tokens is not None:
        labelled = LabelledTokens(tokens.input_ids[row], weights > 0, weights)
        return replace(conversation, tokens=labelled)
    characters = np.stack([tokens.char_start[row], tokens.char_end[row]], axis=1)
    is_trained, answer = tokens.is_trained[row], answer_of_token(tokens, row)
    is_unplaced = is_trained.copy()
    for content in tokens.contents[row]:
        is_unplaced[place_tokens(content, characters).tokens] = False
    turns = list(conversation.turns)
    for number, content in enumerate(tokens.contents[row]):
        if content.turn < 0 or not turns[content.turn].is_trained:
            continue
        if not weights[is_trained & (answer == number)].any():
            turns[content.turn] = replace(turns[content.turn], is_trained=False)
            continue
        unplaced = np.unique(weights[is_unplaced & (answer == number)])
        weight = float(str(unplaced[0])) if len(unplaced) == 1 and unplaced[0] != 0 else 1.0
        own = [(span.start, span.end, span.weight) for span in spans if span.message == content.turn]
        turns[content.turn] = _weigh_turn(turns[content.turn], content, own, weight)
    turns = [turn if turn.is_trained else replace(turn, weight=1.0, spans=()) for turn in turns]
    return replace(conversation, turns=tuple(turns))


def _weigh_turn(turn: Turn, content: ContentSpan, spans: Sequence[tuple[int, int, float]], weight: float) -> Turn:
    """The turn with the spans, weight 1 between them, and the message's own ``weight``."""
    whole: list[tuple[int, int, float]] = []
    done = content.skipped
    for start, end, value in [*spans, (content.length + 1, content.length + 1, 1.0)]:
        whole += [(done, start, 1.0)] if done < start else []
        whole += [(start, end, value)] if start < end else []
        done = end
    return replace(turn, weight=weight, spans=tuple(span for span in whole if span[2] != weight))
