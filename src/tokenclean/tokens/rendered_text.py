"""A rendered conversation: its text, and where the training targets and the contents are in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


@dataclass(frozen=True)
class ContentSpan:
    """Where an assistant turn's content is in the text.

    ``turn``: index of the turn. ``start``/``end``: characters of the text. ``skipped``: characters of the turn's
    content that the template stripped on the left, so content character c is at ``start + c - skipped``. ``length``:
    characters of the turn's content. ``end_token``: characters [start, end) of the text that end the answer: the end
    token, with what the template writes between it and the content, tool calls aside; empty where there is none.
    """

    turn: int
    start: int
    end: int
    skipped: int
    length: int
    end_token: tuple[int, int]

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Where characters [start, end) of the content are in the text; nothing of what the template stripped."""
        return max(self.start + start - self.skipped, self.start), min(self.start + end - self.skipped, self.end)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    ``targets``: character spans [start, end) that are trained, one for each trained assistant turn: all that the model
    has to produce there (reasoning, content, tool calls) with the end token, and with the spaces in front that a
    template writes (Mistral's ``[/INST] Hello``: `` Hello`` is one token). ``contents``: the content alone of each
    assistant turn, trained or not; an empty span for a turn that only calls tools.
    """

    text: str
    targets: tuple[tuple[int, int], ...]
    contents: tuple[ContentSpan, ...]
    adds_bos: bool = True
    """Whether tokenization may add the tokenizer's BOS; a chat template writes its own where it wants one."""
    notes: tuple[str, ...] = ()
    """What was done to the row, in fixed phrases that can be counted over rows."""
    dropped_thoughts: tuple[str, ...] = ()
    """Thoughts that the template leaves out, as it does at inference; in the order of the turns."""


def leading_blanks(text: str) -> int:
    """Number of whitespace characters that the text begins with."""
    return len(text) - len(text.lstrip())
