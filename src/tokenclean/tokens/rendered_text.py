"""What rendering a conversation gives: its text, and where the training targets and the contents lie in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ContentSpan:
    """Where an assistant turn's content lies in the text.

    ``turn``: index of the turn. ``start``/``end``: characters of the text. ``skipped``: characters of the turn's
    content that the template stripped on the left, so content character c lies at ``start + c - skipped``.
    """

    turn: int
    start: int
    end: int
    skipped: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    ``targets``: character spans [start, end) that are trained, one a trained assistant turn: all that the model has
    to produce there (reasoning, content, tool calls) with the end token behind it, and with the spaces in front of it
    that a template writes (Mistral's ``[/INST] Hello``: `` Hello`` is one token). ``contents``: the content
    alone of each assistant turn, trained or not; of a turn that only calls tools, an empty span.
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
