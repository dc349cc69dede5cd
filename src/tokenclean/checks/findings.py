"""What a check may say: a spot in one row, or what it found in all rows, with examples and groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tokenclean.pool.conversation import Conversation, Turn

Severity = Literal["error", "warning", "note"]

EXAMPLES = 3
_BEFORE, _SHOWN = 10, 160  # characters of an excerpt in front of the spot, and in all


@dataclass(frozen=True)
class Spot:
    """A finding in one row. ``text``: what it is, in words; characters [start, end) of the content of ``turn``."""

    text: str
    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """One finding, shown. ``row``/``place``: the row's id and ``file:line``. ``text``: what was found, in words.
    ``excerpt``: the text around it."""

    row: str
    place: str
    text: str
    excerpt: str


@dataclass(frozen=True)
class Group:
    """Rows that share a phrase. ``variants``: how many wordings of it there are; ``place``: ``file:line`` of the
    first row."""

    phrase: str
    rows: int
    variants: int
    row: str
    place: str


@dataclass(frozen=True)
class Found:
    """What one check found. ``rows``: rows with a finding. ``groups``: of a check that groups rows, the largest first.
    ``note``: what was not looked at, or empty."""

    rows: int = 0
    examples: tuple[Example, ...] = ()
    groups: tuple[Group, ...] = ()
    note: str = ""


@dataclass
class Tally:
    """Counts the rows with a finding and keeps the first of them as examples."""

    rows: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        self.rows += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def found(self) -> Found:
        return Found(self.rows, tuple(self.examples))


class Collector(Protocol):
    """A check at work: it is given every row once, in order, and then says what it found."""

    def add(self, conversation: Conversation) -> None: ...

    def found(self) -> Found: ...


def place_of(conversation: Conversation) -> str:
    return f"{conversation.file}:{conversation.line}"


def short_place(place: str) -> str:
    """A place without the folders."""
    return place.rsplit("/", 1)[-1]


def answers_of(conversation: Conversation) -> Iterator[tuple[int, Turn]]:
    """The assistant turns that are trained and say something, with their numbers."""
    for number, turn in enumerate(conversation.turns):
        if turn.role == "assistant" and turn.is_trained and turn.content.strip():
            yield number, turn


def excerpt_of(content: str, start: int) -> str:
    """The text from a little before ``start`` on, with … where it is cut."""
    first = max(0, start - _BEFORE)
    last = first + _SHOWN
    return "…" * (first > 0) + content[first:last] + "…" * (last < len(content))


def example_of(conversation: Conversation, spot: Spot) -> Example:
    excerpt = excerpt_of(conversation.turns[spot.turn].content, spot.start)
    return Example(conversation.id, place_of(conversation), spot.text, excerpt)
