"""The record types of a data pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["chat", "completion", "text", "tokens"]


@dataclass(frozen=True)
class ToolCall:
    """An assistant's call of a tool: ``name`` of the function, ``arguments`` as the JSON text of an object."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Turn:
    """One message: who speaks and what is said (the text unchanged).

    ``reasoning``: the thoughts in front of an assistant's content. ``tool_calls``: what an assistant calls after it.
    ``is_trained``: False for an assistant turn that the row excludes from training. ``name``/``call_id``: of a tool's
    result, which tool and which call it answers. ``weight``: loss weight of the tokens of a trained turn, −1 <= w <= 1;
    0 where only ``spans`` are trained, and below 0 the tokens are unlearned. ``spans``: (start, end, weight) for
    characters [start, end) of the content that have a weight of their own, −1 <= w <= 1, in place of ``weight``;
    ascending, without overlap. The end token of a content of n characters is [n, n + 1).
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    is_trained: bool = True
    name: str = ""
    call_id: str = ""
    weight: float = 1.0
    spans: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """A row that came tokenized. ``input_ids``: int64 (L,). ``is_response``: bool (L,), True for a training target.
    ``weight``: float32 (L,), the loss weight of each token, below 0 for one to unlearn, which is no target; None where
    every target weighs 1 and no token is unlearned."""

    input_ids: np.ndarray
    is_response: np.ndarray
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class Conversation:
    """One sample x_i of the pool.

    ``id``: stable, ``source:row number:content hash``. ``source``: name of the source it came from. ``kind``: ``chat``
    takes the template's role tags, its turns hold at least one of an assistant; ``completion`` is a prompt (turn 0,
    user) and its completion (turn 1, assistant), joined without tags; ``text`` is plain text, one assistant turn
    without a question; ``tokens`` has no turns but ``tokens``. ``tools``: JSON text of the list of tools on offer, or
    empty. ``file``/``line``: where it was (line, or row of a file without lines, from 1). ``original_id``: the row's
    own id as text, or empty. ``unread``: keys of the row that hold something and were not used. ``notes``: what was
    done to the row so that it can be used, in fixed words that can be counted. ``format``: of the row in the file, a
    name in FORMATS.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    kind: Kind = "chat"
    file: str = ""
    line: int = 0
    tools: str = ""
    tokens: LabelledTokens | None = None
    original_id: str = ""
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    format: str = field(default="", compare=False)

    @property
    def has_weights(self) -> bool:
        """Whether any target has a loss weight other than 1."""
        if self.tokens is not None:
            return self.tokens.weight is not None
        return any(turn.is_trained and (turn.weight != 1 or turn.spans) for turn in self.turns)


@dataclass(frozen=True)
class RejectedRow:
    """A row set aside.

    ``file``/``line``: where it was. ``reason``: why. ``text``: its first 200 characters. ``remedy``: the option that
    helps, or empty. ``is_chosen``: left out by an option that asks for it, so that it is no fault of the data and does
    not count towards ``pool.max_rejected_share``.
    """

    file: str
    line: int
    reason: str
    text: str = ""
    remedy: str = ""
    is_chosen: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class RemovedRow:
    """A usable row that a mixture leaves out.

    ``id``, ``source``, ``file``, ``line``: of its conversation. ``filter``: which one left it out; ``reason``: why, in
    words. ``resembles``: of a duplicate the row that stays, ``similarity`` the Jaccard index with it.
    ``benchmark_file`` and ``ngram``: of a contaminated row what it shares with which file. ``original_id``: the row's
    own id, or empty.
    """

    id: str
    source: str
    file: str
    line: int
    filter: str
    reason: str
    resembles: str = ""
    similarity: float | None = None
    benchmark_file: str = ""
    ngram: str = ""
    original_id: str = ""


@dataclass(frozen=True)
class Pool:
    """The data pool: usable conversations in file order, the rows set aside, and the usable ones that were left out."""

    conversations: tuple[Conversation, ...]
    rejected: tuple[RejectedRow, ...] = ()
    removed: tuple[RemovedRow, ...] = ()

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
        """The given rows in the given order (rejected and removed rows stay listed)."""
        return replace(self, conversations=tuple(self.conversations[int(r)] for r in rows))
