"""What a check may say of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]

NO_MARKERS = "the ids hold no role marker of a known template, so nothing shows where an answer begins or ends"
SELECTED = "labels have gaps inside answers, as token selection leaves them, so a masked token is no fault"


@dataclass(frozen=True)
class Finding:
    """A fault of one row. ``text``: what it is, in words. ``spans``: token spans [start, end) at fault, in order; none
    where the row as a whole is."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Unjudged:
    """The check cannot tell, for this reason."""

    reason: str


Verdict = Finding | Unjudged | None
