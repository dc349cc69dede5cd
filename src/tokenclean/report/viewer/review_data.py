"""What the viewer's page needs to take decisions: places of tokens, texts of answers, what to look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.pool.conversation import Conversation
from tokenclean.pool.word_ngrams import UNSPACED
from tokenclean.report.viewer.page_data import base128, packed
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.review.decisions import Decision, to_line
from tokenclean.review.phrases import PhraseGroup
from tokenclean.review.placed import TOKENS
from tokenclean.review.queue import Suggestion
from tokenclean.review.token_places import NO_PLACE, TokenPlaces


@dataclass(frozen=True)
class ReviewPart:
    """The rows that a page shows. ``conversations``, ``places``: theirs, in the page's order; ``suggestions``: with
    their numbers there; ``phrases``: of the whole pool; ``decisions``: those taken so far."""

    conversations: Sequence[Conversation]
    places: TokenPlaces
    suggestions: Sequence[Suggestion]
    phrases: Sequence[PhraseGroup]
    decisions: Sequence[Decision]


def rows_to_review(suggestions: Sequence[Suggestion], lengths: np.ndarray, sample: Sample) -> np.ndarray:
    """Rows to show, int64, rising: those with suggestions first, then the others in their order, as many as ``sample``
    allows. ``lengths``: int (N,), tokens of each row; a longer row than a page may hold is never taken."""
    suggested = dict.fromkeys(one.row for one in suggestions)
    order = np.array([*suggested, *(row for row in range(len(lengths)) if row not in suggested)], dtype=np.int64)
    order = order[lengths[order] <= sample.tokens]
    fitting = int(np.count_nonzero(np.cumsum(lengths[order]) <= sample.tokens))
    return np.sort(order[: min(sample.conversations, fitting)])


def review_data(part: ReviewPart, *, who: str) -> dict[str, object]:
    """The part as JSON. ``who``: the name that the page proposes.

    ``messages`` (shifted so that no place is 0), ``starts`` and ``sizes``: of each token, base-128 numbers as of
    ``page_data``. ``answers``: of each conversation the contents of its answers by message. ``queue``: conversation,
    first token, token behind the last, reason.
    """
    places = part.places
    reasons = list(dict.fromkeys(one.reason for one in part.suggestions))
    shown = [set(np.unique(row).tolist()) - {NO_PLACE, TOKENS} for row in places.message]
    return {
        "who": who,
        "ids": [conversation.id for conversation in part.conversations],
        "originalIds": [conversation.original_id for conversation in part.conversations],
        "messages": packed(base128(places.message.values - NO_PLACE), "u1"),
        "starts": packed(base128(places.start.values), "u1"),
        "sizes": packed(base128(places.end.values - places.start.values), "u1"),
        "firstMessage": NO_PLACE,
        "tokensMessage": TOKENS,
        "unspaced": UNSPACED,
        "answers": [
            {message: conversation.turns[message].content for message in sorted(messages)}
            for conversation, messages in zip(part.conversations, shown, strict=True)
        ],
        "reasons": reasons,
        "queue": [[one.row, one.first, one.behind, reasons.index(one.reason)] for one in part.suggestions],
        "phrases": [
            {"place": group.place, "phrases": [[phrase.text, phrase.rows] for phrase in group.phrases]}
            for group in part.phrases
        ],
        "lines": [to_line(decision) for decision in part.decisions],
    }
