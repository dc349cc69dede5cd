"""Answers that go round in a loop: the same words again and again, directly one after the other."""

from __future__ import annotations

import re

from tokenclean.checks.findings import Spot, answers_of
from tokenclean.pool.conversation import Conversation

_LEAST_WORDS = 20  # of the whole loop
_LEAST_TIMES = 3
_CODE = re.compile(r"[<>={}()\[\]|_\\;]")
# Scripts without spaces: there each character is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W_]+")


def find_loop(conversation: Conversation) -> Spot | None:
    """Answers with the same words at least three times in a row, twenty words or more in all; numbers do not count,
    nor do code and tables."""
    for number, turn in answers_of(conversation):
        span = loop_in(turn.content)
        if span and not _CODE.search(turn.content, *span[:2]):
            start, end, period = span
            return Spot(f"{period} word{'s' * (period > 1)} again and again", number, start, end)
    return None


def loop_in(text: str) -> tuple[int, int, int] | None:
    """Characters [start, end) of the first loop and the words of one turn of it; None if there is none.

    A word inside a loop of period p is the word p before it. The period is found as the distance of equal triples of
    words, so that a word that comes twice within one turn does no harm.
    """
    words = _WORD.findall(text.lower())
    if len(words) < _LEAST_WORDS:
        return None
    last: dict[tuple[str, str, str], int] = {}
    period = length = 0
    for place, triple in enumerate(zip(words, words[1:], words[2:], strict=False)):
        distance = place - last.get(triple, place)
        last[triple] = place
        if distance and distance == period:
            length += 1
        else:
            period, length = distance, 1 if distance else 0
        # The triples from ``place - length + 1`` on repeat; with the turn before them they are the loop.
        whole = length + period + 2
        if length and whole >= max(_LEAST_WORDS, _LEAST_TIMES * period):
            first = place - length + 1 - period
            if any(word.isalpha() and (len(word) > 1 or not word.isascii()) for word in words[first : first + period]):
                return _characters(text, first, place + 3, period)
    return None


def _characters(text: str, first: int, behind: int, period: int) -> tuple[int, int, int]:
    spans = [match.span() for match in _WORD.finditer(text.lower())]
    return spans[first][0], spans[behind - 1][1], period
