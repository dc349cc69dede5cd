"""A pool too large for memory: counted in one cheap reading, then taken shard by shard.

A shard is a run of consecutive rows, cut by the length of their texts: where it begins and ends depends on the rows
alone, and is known before anything is tokenized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tokenclean.pool.conversation import Conversation, RejectedRow
from tokenclean.pool.intake import Intake, check_usable
from tokenclean.pool.rejected import write_rejected
from tokenclean.pool.sources import stream_sources
from tokenclean.recipe import SourceSettings

SHARD_CHARACTERS = 1 << 20
SHARD_ROWS = 1 << 14  # rows of a few characters cost memory and tags, which their characters don't tell

_CHARACTERS_OF_A_TOKEN = 4


@dataclass(frozen=True)
class PoolSurvey:
    """What a reading of a whole pool has counted.

    ``rows``: all rows, those set aside included. ``rejected``: rows set aside. ``shards`` and ``characters``: of the
    usable rows, as ``shard_stream`` and ``count_characters`` count them. ``weighted``: usable rows with loss weights
    of their own. ``intake``: what became of all rows, for the process that has read them.
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
        """About as many tokens as the usable rows have."""
        return self.characters // _CHARACTERS_OF_A_TOKEN


def survey_pool(
    sources: Iterable[SourceSettings], shard_characters: int, listing: str | Path, max_rejected_share: float
) -> PoolSurvey:
    """Read all sources once, in constant memory, and write the rows set aside to ``listing``, where there are any.

    Raises as ``load_pool`` does; PoolError as ``check_usable``; RunFolderError where the listing cannot be written;
    ValueError for ``shard_characters`` < 1.
    """
    count = _Count(shard_characters)
    rejected = count.rejected_rows(stream_sources(sources))
    if (first := next(rejected, None)) is not None:
        write_rejected(chain([first], rejected), listing)
    survey = count.survey()
    check_usable(survey.intake, max_rejected_share, listing=listing)
    return survey


def shard_stream(
    conversations: Iterable[Conversation], shard_characters: int = SHARD_CHARACTERS
) -> Iterator[list[Conversation]]:
    """Consecutive conversations as shards, one in memory at a time.

    A shard ends with the row by which it holds ``shard_characters`` characters or SHARD_ROWS rows; the last one may
    hold less. Raises ValueError for ``shard_characters`` < 1.
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
    """Characters of all that the row says: contents, reasoning, tool calls, tools. A tokenized row counts 4 a token."""
    if conversation.tokens is not None:
        return _CHARACTERS_OF_A_TOKEN * len(conversation.tokens.input_ids)
    count = len(conversation.tools)
    for turn in conversation.turns:
        count += len(turn.content) + len(turn.reasoning)
        count += sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
    return count


class _Cut:
    """Tells, row by row, where shards end."""

    def __init__(self, shard_characters: int) -> None:
        if shard_characters < 1:
            raise ValueError(f"a shard needs at least 1 character, got {shard_characters}")
        self._shard_characters = shard_characters
        self.rows = self._characters = 0

    def is_after(self, characters: int) -> bool:
        """Take a row of so many characters; True where its shard ends with it."""
        self.rows += 1
        self._characters += characters
        if self._characters < self._shard_characters and self.rows < SHARD_ROWS:
            return False
        self.rows = self._characters = 0
        return True


class _Count:
    """Counts of a stream, from which the rows set aside are passed on."""

    def __init__(self, shard_characters: int) -> None:
        self._cut = _Cut(shard_characters)
        self._whole_shards = self._characters = 0
        self._intake = Intake()

    def rejected_rows(self, rows: Iterable[Conversation | RejectedRow]) -> Iterator[RejectedRow]:
        for row in rows:
            self._intake.add(row)
            if isinstance(row, RejectedRow):
                yield row
                continue
            characters = count_characters(row)
            self._characters += characters
            self._whole_shards += self._cut.is_after(characters)

    def survey(self) -> PoolSurvey:
        shards = self._whole_shards + (self._cut.rows > 0)
        intake = self._intake
        return PoolSurvey(intake.rows, intake.set_aside, shards, self._characters, intake.weighted, intake)
