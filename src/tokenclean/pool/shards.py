"""A pool too large for memory: counted in one cheap pass, then read shard by shard.

A shard is a run of consecutive rows, cut by the length of their texts: where it begins and ends depends on the rows
alone, and is known before anything is tokenized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tokenclean.pool.conversation import Conversation, RejectedRow, Turn
from tokenclean.pool.intake import Intake, check_usable, write_rejected
from tokenclean.pool.sources import stream_sources
from tokenclean.recipe import SourceSettings

SHARD_CHARACTERS = 1 << 20
SHARD_ROWS = 1 << 14  # rows of a few characters cost memory and tags, which the count of characters leaves out

_CHARACTERS_OF_A_TOKEN = 4


@dataclass(frozen=True)
class PoolSurvey:
    """Counts of a whole pool.

    ``rows``: all rows, those set aside included. ``rejected``: rows set aside. ``shards`` and ``characters``: those of
    the usable rows, by ``shard_stream`` and ``count_characters``. ``weighted``: usable rows with loss weights of their
    own. ``intake``: what became of all rows, in the process that has read them.
    """

    rows: int
    rejected: int
    shards: int
    characters: int
    weighted: int = 0
    intake: Intake = field(default_factory=Intake)

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Its numbers, which processes can share."""
        return self.rows, self.rejected, self.shards, self.characters, self.weighted

    @property
    def expected_tokens(self) -> int:
        """Estimate of the number of tokens in the usable rows."""
        return self.characters // _CHARACTERS_OF_A_TOKEN


def survey_pool(
    sources: Iterable[SourceSettings], shard_characters: int, listing: str | Path, max_rejected_share: float
) -> PoolSurvey:
    """Read all sources once, in constant memory, and write the rows set aside to ``listing``, where there are any.

    Raises as ``load_pool`` does; PoolError as ``check_usable``; RunFolderError where the listing cannot be written.
    """
    cut, intake = _Cut(shard_characters), Intake()
    characters = shards = 0

    def rejected_rows() -> Iterator[RejectedRow]:
        nonlocal characters, shards
        for row in stream_sources(sources):
            intake.add(row)
            if isinstance(row, RejectedRow):
                yield row
                continue
            count = count_characters(row)
            characters += count
            shards += cut.is_after(count)

    rejected = rejected_rows()
    if (first := next(rejected, None)) is not None:
        write_rejected(chain([first], rejected), listing)
    check_usable(intake, max_rejected_share, listing=listing)
    shards += cut.rows > 0  # the last one, which is not full
    return PoolSurvey(intake.rows, intake.set_aside, shards, characters, intake.weighted, intake)


def shard_stream(
    conversations: Iterable[Conversation], shard_characters: int = SHARD_CHARACTERS
) -> Iterator[list[Conversation]]:
    """Consecutive conversations as shards, one in memory at a time.

    A shard ends with the row by which it holds ``shard_characters`` characters or SHARD_ROWS rows; the last one may
    hold less.
    """
    cut = _Cut(shard_characters)
    shard: list[Conversation] = []
    for conversation in conversations:
        shard.append(conversation)
        if cut.is_after(count_characters(conversation)):
            yield shard
            shard = []
    if shard:
        yield shard


def count_characters(conversation: Conversation) -> int:
    """Characters of everything the row says: contents, reasoning, tool calls, tools. A tokenized row counts 4 a
    token."""
    if conversation.tokens is not None:
        return _CHARACTERS_OF_A_TOKEN * len(conversation.tokens.input_ids)
    return len(conversation.tools) + sum(map(_count_turn, conversation.turns))


def count_response_characters(conversation: Conversation) -> int:
    """Characters that the trained assistant turns say and call; a tokenized row counts 4 a response token."""
    if conversation.tokens is not None:
        return _CHARACTERS_OF_A_TOKEN * int(conversation.tokens.is_response.sum())
    return sum(_count_turn(turn) for turn in conversation.turns if turn.role == "assistant" and turn.is_trained)


def _count_turn(turn: Turn) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
    return len(turn.content) + len(turn.reasoning) + calls


class _Cut:
    """Finds where shards end, row by row."""

    def __init__(self, shard_characters: int) -> None:
        self._shard_characters = shard_characters
        self.rows = self._characters = 0

    def is_after(self, characters: int) -> bool:
        """Add a row of this many characters; True where its shard ends with it."""
        self.rows += 1
        self._characters += characters
        if self._characters < self._shard_characters and self.rows < SHARD_ROWS:
            return False
        self.rows = self._characters = 0
        return True
