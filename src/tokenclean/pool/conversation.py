"""The record types of a data pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant"]
Kind = Literal["chat", "completion"]


@dataclass(frozen=True)
class Turn:
    """One message: who speaks and what is said (the text as it stood in the file)."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """One sample x_i of the pool.

    ``id``: stable, ``source:line:content hash``. ``source``: name of the source it came from. ``turns``: at least one
    with role ``assistant``. ``kind``: ``chat`` takes the template's role tags; ``completion`` is a prompt (turn 0,
    user) and its completion (turn 1, assistant), joined without tags. ``file``/``line``: where it stood (line from 1).
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    kind: Kind = "chat"
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class RejectedRow:
    """A row set aside: where it stood, why, and the first 200 characters of it."""

    file: str
    line: int
    reason: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Pool:
    """The data pool: usable conversations in file order, and the rows set aside."""

    conversations: tuple[Conversation, ...]
    rejected: tuple[RejectedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, row: int) -> Conversation:
        return self.conversations[row]

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self.conversations)

    @property
    def sources(self) -> tuple[str, ...]:
        """Source name of each row, in order."""
        return tuple(c.source for c in self.conversations)

    def take(self, rows: Sequence[int] | np.ndarray) -> Pool:
        """The given rows in the given order (the rejected rows stay listed)."""
        return replace(self, conversations=tuple(self.conversations[int(r)] for r in rows))
