"""Where each response token of a pool is, in the terms of a decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.pool.conversation import Conversation
from tokenclean.ragged import Ragged
from tokenclean.review.placed import TOKENS
from tokenclean.tokens import TokenizedPool
from tokenclean.tokens.weight_spans import place_tokens

NO_PLACE = -2
"""In place of a message's number: a prompt's token, or one of a thought or tool call that the template writes."""


@dataclass(frozen=True)
class TokenPlaces:
    """int64 columns aligned with the pool's tokens.

    ``message``: the message that the token is in, ``TOKENS`` in a row that came tokenized, or ``NO_PLACE``.
    ``start``/``end``: the characters [start, end) of its content, with the end token's place; of a row that came
    tokenized the token's own position.
    """

    message: Ragged
    start: Ragged
    end: Ragged

    @property
    def has_place(self) -> np.ndarray:
        """Whether a decision can name the token, bool, shape (T,)."""
        return self.message.values != NO_PLACE


def token_places(tokens: TokenizedPool, conversations: Sequence[Conversation]) -> TokenPlaces:
    """The places of the response tokens. ``conversations``: the rows of ``tokens``, in the same order."""
    ids = tokens.input_ids
    message = np.full(len(ids.values), NO_PLACE, dtype=np.int64)
    start, end = np.zeros((2, len(ids.values)), dtype=np.int64)
    for row, conversation in enumerate(conversations):
        first, behind = int(ids.offsets[row]), int(ids.offsets[row + 1])
        if conversation.tokens is not None:
            message[first:behind] = TOKENS
            start[first:behind] = np.arange(behind - first)
            end[first:behind] = start[first:behind] + 1
            continue
        characters = np.stack([tokens.char_start[row], tokens.char_end[row]], axis=1)
        for content in tokens.contents[row]:
            placed = place_tokens(content, characters)
            at = first + placed.tokens
            message[at], start[at], end[at] = content.turn, placed.start, placed.end
    message[~tokens.is_response.values] = NO_PLACE
    return TokenPlaces(*map(ids.with_values, (message, start, end)))
