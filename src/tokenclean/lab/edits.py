"""Edits that plant noise: which characters of a pool to replace and by what, and how the rows are drawn."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool.conversation import Conversation, Pool

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


RowEdits = Callable[[int], list[Edit]]
"""What to replace in one row of a pool, given its number; nothing in a row that cannot take the noise."""

NoiseKind = Callable[[Pool, NoiseSettings, np.random.Generator], RowEdits]
"""Reads a pool and gives the edits of its rows. A row's are asked for once, in random order."""


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
