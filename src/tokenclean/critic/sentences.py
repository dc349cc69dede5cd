"""The sentences of a row's answers that a critic judges: prose by sentences, code, formulas and table rows whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokenclean.checks.findings import answers_of
from tokenclean.lab.edits import sentence_spans
from tokenclean.pool import Conversation

# A fence that is never closed goes to the end of the text. Of a table, the first row takes the ruled line below it.
_BLOCK = re.compile(
    r"""
    ^[ ]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*(?:\n(?![ ]{0,3}(?P=fence))[^\n]*)*(?:\n[ ]{0,3}(?P=fence)[^\n]*)?
    | ^[ \t]*\$\$.*?(?:\$\$|\Z)[^\n]*
    | ^[ \t]*\\\[.*?(?:\\\]|\Z)[^\n]*
    | ^[^\n]*\|[^\n]*\n[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t:-]*)+(?=\n|\Z)
    | ^[ \t]*\|[^\n]*
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_SAYS_SOMETHING = re.compile(r"\w")
_LETTER = re.compile(r"[^\W\d_]")
_ENDS_WITH_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|e\.g|i\.e|cf|vs|approx|Dr|Mr|Mrs|Ms|Prof|St|Fig|Jr|Sr)\.$")
_FULL_WIDTH_END = re.compile(r"[。！？]+[”’」』）]*")


@dataclass(frozen=True)
class Sentence:
    """Characters [start, end) of the content of message ``message`` (from 0)."""

    message: int
    start: int
    end: int


def sentences_of(conversation: Conversation) -> tuple[Sentence, ...]:
    """The sentences of all answers that are trained, in order; none for a row of token ids."""
    return tuple(
        Sentence(message, start, end)
        for message, turn in answers_of(conversation)
        for start, end in judged_spans(turn.content)
    )


def judged_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each part of ``text`` that is judged by itself, in order, without overlap.

    A fenced code block, a displayed formula and a row of a Markdown table (the first with the ruled line below it) are
    one part each: half of one says nothing. Other text goes by ``lab.edits.sentence_spans``, where a piece without a
    letter (the number of a list's item) and one that ends in an abbreviation belong to the next of their line, and
    full-width stops end sentences too. Parts without a letter or digit (ruled lines) are left out.
    """
    spans: list[tuple[int, int]] = []
    done = 0
    for block in _BLOCK.finditer(text):
        spans += _prose_spans(text, done, block.start())
        spans.append(block.span())
        done = block.end()
    spans += _prose_spans(text, done, len(text))
    trimmed = (_without_blanks(text, start, end) for start, end in spans)
    return [(start, end) for start, end in trimmed if _SAYS_SOMETHING.search(text, start, end)]


def _prose_spans(text: str, first: int, last: int) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    is_open = False  # whether the piece before goes on with the next one of its line
    for start, end in _split_full_width(text, first, last):
        if is_open and "\n" not in text[joined[-1][1] : start]:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
        own = text[joined[-1][0] : end]
        is_open = not _LETTER.search(own) or bool(_ENDS_WITH_ABBREVIATION.search(own))
    return joined


def _split_full_width(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    for start, end in sentence_spans(text[first:last]):
        start, end = first + start, first + end
        for stop in _FULL_WIDTH_END.finditer(text, start, end):
            yield start, stop.end()
            start = stop.end()
        if start < end:
            yield start, end


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    own = text[start:end]
    start += len(own) - len(own.lstrip())
    return start, max(start, start + len(own.strip()))
