"""Rows, decisions and a small tokenizer for the tests of reviews."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from tokenclean.pool.conversation import Conversation, Pool, Turn
from tokenclean.report.viewer.page import render_page
from tokenclean.report.viewer.page_data import View, ViewedTable, open_view
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.report.viewer.review_data import ReviewPart, review_data
from tokenclean.review.decisions import PhraseDecision, Signature, SpanDecision, Undo
from tokenclean.review.phrases import repeated_phrases
from tokenclean.review.queue import suggest
from tokenclean.review.token_places import token_places
from tokenclean.selection import select_tokens
from tokenclean.tokens import tokenize_pool
from viewer_tables import byte_level

_numbers = count()


def signed(who: str = "Ann") -> Signature:
    return Signature(f"d{next(_numbers)}", who, "2026-11-30T10:00:00Z")


def row(*answers: str, id: str = "", original_id: str = "") -> Conversation:
    """A chat in which each answer follows a question, so answers are messages 1, 3, …"""
    turns = [turn for answer in answers for turn in (Turn("user", "Why?"), Turn("assistant", answer))]
    return Conversation(id or f"row:{next(_numbers)}:abc", "row", tuple(turns), original_id=original_id)


def span(
    of: Conversation, start: int, end: int, weight: float = 0.0, *, message: int = 1, who: str = "Ann"
) -> SpanDecision:
    kind = {0.0: "drop", 1.0: "keep"}.get(weight, "weight")
    text = of.turns[message].content[start:end]
    return SpanDecision(signed(who), kind, of.id, of.original_id, message, start, end, weight, text)


def phrase(text: str, who: str = "Ann") -> PhraseDecision:
    return PhraseDecision(signed(who), text)


def undo(decision: SpanDecision | PhraseDecision, who: str = "Ann") -> Undo:
    return Undo(signed(who), decision.signature.decision)


def view_of(conversations: Sequence[Conversation], seed: int = 0, longest: int = 400) -> tuple[View, ReviewPart]:
    """Rows as a table of made-up scores, of which 60 % are kept, and what its page needs to take decisions."""
    tokens = tokenize_pool(Pool(tuple(conversations)), byte_level(), template="tulu", max_length=longest)
    drawn = np.random.default_rng(seed).normal(size=len(tokens.input_ids.values)).astype(np.float32)
    score = tokens.input_ids.with_values(np.where(tokens.is_response.values, drawn, np.nan).astype(np.float32))
    kept = select_tokens(score, tokens.is_response, proportion=0.6)
    table = tokens.table({"strategy": "fixed_model"}, score=score, is_kept=kept)
    places = token_places(tokens, conversations)
    suggestions = suggest(table, places, {}, {}, 1_000)
    rows = np.arange(len(conversations))
    shown = open_view([ViewedTable.of_table("fixed_model", table)], byte_level(), Sample(tokens=10**7), rows)
    return shown, ReviewPart(conversations, places, suggestions, repeated_phrases(conversations), ())


def page_of(conversations: Sequence[Conversation], *, is_served: bool, who: str = "Ann", longest: int = 400) -> str:
    """The page of these rows."""
    shown, part = view_of(conversations, longest=longest)
    return render_page(shown, title="Rows", review=review_data(part, who=who), is_served=is_served)
