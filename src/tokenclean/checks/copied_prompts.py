"""Answers that are copies of the prompt."""

from __future__ import annotations

import math

from tokenclean.checks.findings import Spot, answers_of
from tokenclean.pool.conversation import Conversation

_LEAST_WORDS = 8  # of an instruction
_LONG_WORDS = 20  # of an answer
_SHARE = 0.9


def find_copied_prompt(conversation: Conversation) -> Spot | None:
    """Answers that hold the whole instruction, or long ones of which nine tenths are one passage of the prompt.

    Spaces and case are folded. The instruction is the last user turn, or its first line where more follows.
    """
    prompt, instructions = "", ()
    for turn in conversation.turns:
        if turn.role != "assistant":
            if turn.role == "user":
                first, _, rest = turn.content.strip().partition("\n")
                instructions = tuple(filter(None, map(_fold, {turn.content, first} if rest else (turn.content,))))
            prompt += f" {turn.content}"
    if not instructions:
        return None
    folded_prompt = _fold(prompt)
    for number, turn in answers_of(conversation):
        answer = _fold(turn.content)
        for text in instructions:
            if text in answer and text.count(" ") + 1 >= _LEAST_WORDS:
                start = round(answer.index(text) / len(answer) * len(turn.content))  # spaces are folded
                end = min(start + len(text), len(turn.content))
                return Spot("repeats the whole instruction", number, start, end)
        if answer.count(" ") + 1 >= _LONG_WORDS and copied_share(answer, folded_prompt) >= _SHARE:
            return Spot("is a passage of the prompt", number, 0, len(turn.content))
    return None


def copied_share(answer: str, prompt: str) -> float:
    """Share of the answer's characters that are one passage of the prompt, where it is at least 0.9; else 0.

    Any passage of nine tenths holds the middle eight tenths, so these are looked for and then extended.
    """
    length = len(answer)
    margin = length - math.ceil(length * _SHARE - 1e-9)
    start, end = margin, length - margin
    middle, best, place = answer[start:end], 0, -1
    while middle and (place := prompt.find(middle, place + 1)) >= 0:
        before = _common(answer[:start][::-1], prompt[:place][::-1])
        behind = _common(answer[end:], prompt[place + len(middle) :])
        best = max(best, before + len(middle) + behind)
    return best / length if best >= _SHARE * length else 0.0


def _common(first: str, second: str) -> int:
    """Length of the common beginning."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return number
    return min(len(first), len(second))


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
