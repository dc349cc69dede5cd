"""Rows, decisions and a small tokenizer for the tests of reviews."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.review.decisions import PhraseDecision, Signature, SpanDecision, Undo

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


def chats(count: int, answer: str) -> Sequence[Conversation]:
    return [row(answer) for _ in range(count)]
