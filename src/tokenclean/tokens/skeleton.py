"""What a chat template writes around the texts of a conversation, and these texts found again in its real rendering."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenclean.tokens.outline import KEY, VALUE, Mark


@dataclass(frozen=True)
class Skeleton:
    """A rendering with marks: ``glue[n]``, the template's own text, stands in front of ``marks[n]``, the last glue
    behind them all."""

    glue: tuple[str, ...]
    marks: tuple[Mark, ...]

    @classmethod
    def read(cls, rendering: str, stem: str) -> Skeleton:
        pieces = re.split(rf"{stem}(\d+)([a-z])(\d+)_", rendering)
        marks = zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
        return cls(tuple(pieces[::4]), tuple(Mark(int(turn), kind, int(call)) for turn, kind, call in marks))

    @property
    def texts(self) -> list[Mark]:
        """The marks of contents and thoughts, without those of arguments."""
        return [mark for mark in self.marks if mark.kind not in (KEY, VALUE)]


class Span(NamedTuple):
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


class Failure(NamedTuple):
    """The first mark whose text, with the glue behind it, is not what the template wrote."""

    mark: Mark | None


def fill(skeleton: Skeleton, variants: Sequence[Sequence[str]], text: str) -> list[Span] | Failure:
    """Where the text of each mark stands, such that glue and texts together are the whole text to the letter.

    ``variants``: for each mark what the template may have made of its text, the likeliest first. All ways are followed
    at once: which variant it is may show only behind the glue that follows.
    """
    if not text.startswith(skeleton.glue[0]):
        return Failure(skeleton.marks[0] if skeleton.marks else None)
    reached = {len(skeleton.glue[0]): (0, 0)}
    trail = [reached]
    for mark, forms, glue in zip(skeleton.marks, variants, skeleton.glue[1:], strict=True):
        following: dict[int, tuple[int, int]] = {}
        for position in reached:
            for form in forms:
                end = position + len(form)
                if text.startswith(form, position) and text.startswith(glue, end):
                    following.setdefault(end + len(glue), (position, end))
        if not following:
            return Failure(mark)
        trail.append(reached := following)
    if len(text) not in reached:
        return Failure(skeleton.marks[-1] if skeleton.marks else None)
    spans, position = [], len(text)
    for reached in reversed(trail[1:]):
        start, end = reached[position]
        spans.append(Span(start, end))
        position = start
    return spans[::-1]


def stripped_forms(text: str) -> tuple[str, ...]:
    """The text as it stands and without the blanks around it, as templates strip them; longest first."""
    if text and not text[0].isspace() and not text[-1].isspace():
        return (text,)
    forms = (text, *(form for blanks in (None, "\n", " \n") for form in _strips(text, blanks)))
    return tuple(sorted(dict.fromkeys(forms), key=len, reverse=True))


def _strips(text: str, blanks: str | None) -> tuple[str, str, str]:
    return text.lstrip(blanks), text.rstrip(blanks), text.strip(blanks)


def escaped_forms(text: str) -> tuple[str, ...]:
    """The text as JSON writes it inside its quotes, stripped or not, where that differs from the text."""
    forms = [
        json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in stripped_forms(text) for is_ascii in (False, True)
    ]
    return tuple(form for form in dict.fromkeys(forms) if form not in stripped_forms(text))
