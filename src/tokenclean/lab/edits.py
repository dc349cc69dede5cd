"""Edits that plant noise: which characters of a pool to replace and by what, and how the rows are drawn."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool.conversation import Conversation, Pool

logger = logging.getLogger(__name__)

_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?]+[\"'”’)]*(?=\s|$)|(?=\n)|$)")


@dataclass(frozen=True)
class NoiseSettings:
    """How much noise of one kind.

    ``row_share``: share of the pool's rows with noise, in [0, 1]; ``int(row_share * N)`` rows. ``word_share``: share of
    the words, names or numbers replaced in each assistant turn of such a row, in [0, 1], by the kinds that replace
    them; the others ignore it. Raises RecipeError.
    """

    row_share: float = 0.3
    word_share: float = 0.25

    def __post_init__(self) -> None:
        problems = [f"{k} must lie in [0, 1], found {v!r}" for k, v in vars(self).items() if not 0 <= v <= 1]
        if problems:
            raise RecipeError(problems, source="noise settings")


@dataclass(frozen=True)
class Edit:
    """Put ``text`` in place of the characters [start, end) of ``pool[row].turns[turn].content``."""

    row: int
    turn: int
    start: int
    end: int
    text: str

    def overlaps(self, other: Edit) -> bool:
        """Whether both change a character, or one inserts inside what the other replaces; of the same turn."""
        return self.start < other.end and other.start < self.end


NoiseKind = Callable[[Pool, NoiseSettings, np.random.Generator], list[Edit]]
"""Reads a pool and says what to replace in it."""


def assistant_contents(conversation: Conversation) -> list[tuple[int, str]]:
    """(turn number, content) of each assistant turn."""
    return [(number, turn.content) for number, turn in enumerate(conversation.turns) if turn.role == "assistant"]


def word_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each word of ``text``, in order (``corrupt_words`` says what a word is)."""
    return [match.span() for match in _word_pattern().finditer(text)]


@cache
def _word_pattern() -> re.Pattern[str]:
    # re does not count a combining mark as a letter, which would cut a Devanagari word or a decomposed é in two.
    marks = "".join(chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c)).startswith("M"))
    return re.compile(rf"[^\W_]+(?:[{marks}]+[^\W_]*|['’][^\W_]+)*")


def edits_of_drawn_rows(
    pool: Pool, kind: str, row_share: float, generator: np.random.Generator, edits_of_row: Callable[[int], list[Edit]]
) -> list[Edit]:
    """Edits of the first ``int(row_share * N)`` rows in a random order, skipping rows without an edit."""
    wanted = int(row_share * len(pool))
    edited = filter(None, (edits_of_row(int(row)) for row in generator.permutation(len(pool))))
    taken = list(islice(edited, wanted))
    if len(taken) < wanted:
        logger.warning("noise %r: %d rows were asked for, but only %d can take it", kind, wanted, len(taken))
    return [edit for of_row in taken for edit in of_row]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each sentence of ``text``, in order, without the blank space around it.

    A sentence ends with ``.``, ``!`` or ``?`` (and closing quotes) before blank space, or with its line.
    """
    return [(match.start(), match.start() + len(match.group().rstrip())) for match in _SENTENCE.finditer(text)]


def needs_other_rows(pool: Pool, kind: str, what: str) -> None:
    """Raise PoolError for a pool of fewer than two rows, where this kind draws ``what`` from other rows."""
    if len(pool) < 2:
        raise PoolError(
            f"noise {kind!r} draws its {what} from other rows, but this pool has {len(pool)} row(s); "
            "use at least two rows, or leave this kind out"
        )
