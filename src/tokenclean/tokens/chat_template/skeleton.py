"""What a chat template writes around the texts of a conversation, and these texts found in its real rendering."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenclean.tokens.chat_template.text_marks import KEY, VALUE, Mark


@dataclass(frozen=True)
class Skeleton:
    """A rendering with marks: ``glue[n]``, the template's own text, comes before ``marks[n]``; the last glue comes
    after them all."""

    glue: tuple[str, ...]
    marks: tuple[Mark, ...]

    @classmethod
    def read(cls, rendering: str, stem: str) -> Skeleton:
        pieces = re.split(rf"{stem}(\d+)([a-z])(\d+)_", rendering)
        marks = zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
        return cls(tuple(pieces[::4]), tuple(Mark(int(turn), kind, int(call)) for turn, kind, call in marks))

    @property
    def texts(self) -> tuple[Mark, ...]:
        """The marks of contents and thoughts, without those of arguments."""
        return tuple(mark for mark in self.marks if mark.kind not in (KEY, VALUE))


class Span(NamedTuple):
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


class Failure(NamedTuple):
    """The first mark whose text, with the glue after it, is not what the template wrote; None for no mark."""

    mark: Mark | None


def fill(skeleton: Skeleton, variants: Sequence[Sequence[str]], text: str) -> list[Span] | Failure:
    """The span of each mark's text, such that glue and texts together are exactly the whole text.

    ``variants``: for each mark the forms in which the template may write its text, the likeliest first. All of them are
    followed in parallel, since only the glue that comes next may show which one it is.
    """
    if not text.startswith(skeleton.glue[0]):
        return Failure(skeleton.marks[0] if skeleton.marks else None)
    reached = {len(skeleton.glue[0]): (0, 0)}  # a position behind a glue -> the span of the text in front of that glue
    trail = []
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
    for reached in reversed(trail):
        spans.append(Span(*reached[position]))
        position = spans[-1].start
    return spans[::-1]


def stripped_forms(text: str) -> tuple[str, ...]:
    """The text with and without the blanks around it, as templates strip them; longest first."""
    if text and not text[0].isspace() and not text[-1].isspace():
        return (text,)
    strips = (str.lstrip, str.rstrip, str.strip)
    forms = (text, *(strip(text, blanks) for blanks in (None, "\n", " \n") for strip in strips))
    return tuple(sorted(dict.fromkeys(forms), key=len, reverse=True))


def escaped_forms(text: str) -> tuple[str, ...]:
    """The text as JSON writes it inside its quotes, stripped or not; nothing if that is the text itself."""
    plain = stripped_forms(text)
    forms = [json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in plain for is_ascii in (False, True)]
    return tuple(form for form in dict.fromkeys(forms) if form not in plain)
