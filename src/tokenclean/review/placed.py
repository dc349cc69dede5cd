"""Decisions placed on the rows of a pool: which characters, or tokens of a row without text, have which weight.

Later decisions replace earlier ones, character by character, whoever made them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tokenclean.checks.findings import answers_of
from tokenclean.pool.conversation import Conversation
from tokenclean.review.decisions import PhraseDecision, SpanDecision, TokenDecision, Weighing
from tokenclean.review.phrases import find_phrase
from tokenclean.tokens.weight_spans import WeightSpan

TOKENS = -1
"""In place of a message's number: the positions are tokens of a row that came tokenized."""


@dataclass(frozen=True)
class Unplaced:
    """A decision that fits no row, and why."""

    decision: Weighing
    reason: str

    def __str__(self) -> str:
        who = self.decision.signature.who
        if isinstance(self.decision, PhraseDecision):
            return f"{who}: drop everywhere {self.decision.phrase!r}: {self.reason}"
        return f"{who}: {self.decision.kind} in row {self.decision.id!r}: {self.reason}"


@dataclass(frozen=True)
class PlacedDecisions:
    """``weights``: by row number and message (or TOKENS), float32 with one value for each character of the content and
    its end token (or for each token), NaN where nothing was decided. ``unplaced``: decisions that fit no row.
    ``placed``: how many do. ``replaced``: positions at which a decision replaced another weight."""

    weights: Mapping[tuple[int, int], np.ndarray]
    unplaced: tuple[Unplaced, ...] = ()
    placed: int = 0
    replaced: int = 0

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows with a decision, rising."""
        return sorted({row for row, _ in self.weights})

    def spans(self, rows: int) -> list[tuple[WeightSpan, ...]]:
        """For each of so many rows the spans of characters with a weight, ascending and without overlap."""
        spans: list[list[WeightSpan]] = [[] for _ in range(rows)]
        for (row, message), weights in sorted(self.weights.items()):
            if message != TOKENS:
                spans[row] += (WeightSpan(message, *run) for run in _runs(weights))
        return list(map(tuple, spans))

    def tokens_of(self, row: int) -> np.ndarray | None:
        """The weights of a row that came tokenized, one a token; None where nothing was decided on it."""
        return self.weights.get((row, TOKENS))


def place(decisions: Iterable[Weighing], conversations: Sequence[Conversation]) -> PlacedDecisions:
    """Place decisions, in their order, on these rows.

    A row is found by its id, else by its own id where only one row has that. A span is placed where its message still
    has its text there, a phrase wherever it occurs in an answer that is trained.
    """
    board = _Board(conversations)
    for decision in decisions:
        if reason := board.put(decision):
            board.unplaced.append(Unplaced(decision, reason))
        else:
            board.placed += 1
    return PlacedDecisions(board.weights, tuple(board.unplaced), board.placed, board.replaced)


def place_by_person(decisions: Iterable[Weighing], conversations: Sequence[Conversation]) -> dict[str, PlacedDecisions]:
    """Each person's own decisions, placed by themselves."""
    own: defaultdict[str, list[Weighing]] = defaultdict(list)
    for decision in decisions:
        own[decision.signature.who].append(decision)
    return {who: place(theirs, conversations) for who, theirs in own.items()}


@dataclass
class _Board:
    """What is placed so far, as of ``PlacedDecisions``."""

    conversations: Sequence[Conversation]
    weights: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    unplaced: list[Unplaced] = field(default_factory=list)
    placed: int = 0
    replaced: int = 0

    def __post_init__(self) -> None:
        self._row_of = {conversation.id: row for row, conversation in enumerate(self.conversations)}
        self._rows_of_own: defaultdict[str, list[int]] = defaultdict(list)
        for row, conversation in enumerate(self.conversations):
            if conversation.original_id:
                self._rows_of_own[conversation.original_id].append(row)

    def put(self, decision: Weighing) -> str:
        """Place a decision; returns why it cannot be, empty where it is."""
        if isinstance(decision, PhraseDecision):
            return self._put_phrase(decision)
        row = self._find(decision)
        if row is None:
            return "no row has its id, or its own id alone"
        if isinstance(decision, TokenDecision):
            return self._put_tokens(row, decision)
        return self._put_span(row, decision)

    def _find(self, decision: SpanDecision | TokenDecision) -> int | None:
        row = self._row_of.get(decision.id)
        own = self._rows_of_own.get(decision.original_id, []) if decision.original_id else []
        return own[0] if row is None and len(own) == 1 else row

    def _put_span(self, row: int, decision: SpanDecision) -> str:
        turns, start, end = self.conversations[row].turns, decision.start, decision.end
        if decision.message >= len(turns) or turns[decision.message].role != "assistant":
            return f"message {decision.message} is no answer"
        content = turns[decision.message].content
        if end > len(content) + 1 or content[start:end] != decision.text:
            there = content[start:end]
            return f"its text has changed: expected {_short(decision.text)}, found {_short(there)}"
        self._paint(row, decision.message, start, end, decision.weight, len(content) + 1)
        return ""

    def _put_tokens(self, row: int, decision: TokenDecision) -> str:
        tokens, start, end = self.conversations[row].tokens, decision.token_start, decision.token_end
        if tokens is None:
            return "it names tokens, but the row has text"
        if tuple(tokens.input_ids[start:end].tolist()) != decision.input_ids:
            return f"its tokens {start} to {end} have changed"
        self._paint(row, TOKENS, start, end, decision.weight, len(tokens.input_ids))
        return ""

    def _put_phrase(self, decision: PhraseDecision) -> str:
        found = False
        for row, conversation in enumerate(self.conversations):
            for message, turn in answers_of(conversation):
                if decision.phrase not in turn.content:
                    continue
                for start, end in find_phrase(decision.phrase, turn.content):
                    self._paint(row, message, start, end, decision.weight, len(turn.content) + 1)
                    found = True
        return "" if found else "it occurs in no answer"

    def _paint(self, row: int, message: int, start: int, end: int, weight: float, length: int) -> None:
        if (row, message) not in self.weights:
            self.weights[row, message] = np.full(length, np.nan, dtype=np.float32)
        there = self.weights[row, message][start:end]
        self.replaced += int(np.count_nonzero(~np.isnan(there) & (there != np.float32(weight))))
        there[:] = weight


def _runs(weights: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(start, end, weight) of each run of one weight that is not NaN."""
    is_decided = ~np.isnan(weights)
    changes = (is_decided[1:] != is_decided[:-1]) | (is_decided[1:] & (weights[1:] != weights[:-1]))
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(weights)]
    for start, end in pairwise(borders):
        if is_decided[start]:
            yield start, end, float(weights[start])


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
