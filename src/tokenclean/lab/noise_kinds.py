"""The kinds of noise: each reads a pool and returns which characters to replace, and by what."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from tokenclean.errors import PoolError, RecipeError
from tokenclean.pool.conversation import Conversation, Pool
from tokenclean.ragged import offsets_of

logger = logging.getLogger(__name__)

OPENERS = (
    "Sure, I would be happy to help you with that. ",
    "Certainly! Here is what you asked for:\n\n",
    "Great question! ",
    "Of course! Let me walk you through it. ",
    "Thank you for reaching out. ",
    "Absolutely! I can definitely assist you with this.\n\n",
    "As an AI language model, I will do my best to answer. ",
    "No problem at all! Here you go:\n\n",
    "I understand what you are looking for. ",
    "That is an interesting request! ",
    "Thanks for your question. Here is a detailed answer:\n\n",
    "Okay, let us take a closer look at this. ",
)
"""Stock texts that ``boilerplate`` puts before a turn; each ends in its separator."""

CLOSERS = (
    "\n\nI hope this helps! Let me know if you have any other questions.",
    "\n\nPlease feel free to ask if anything is unclear.",
    " Is there anything else I can help you with today?",
    "\n\nIf you would like more details, just let me know!",
    " I hope that answers your question.",
    "\n\nThank you for using our service, and have a wonderful day!",
    "\n\nRemember, I am always here to assist you.",
    "\n\nIn conclusion, it is important to consider every aspect of this topic.",
    " Do not hesitate to reach out if you need further assistance.",
    "\n\nPlease note that this answer is for general information only.",
    "\n\nFeel free to share your thoughts or feedback with me!",
    " Good luck, and happy learning!",
)
"""Stock texts that ``boilerplate`` puts after a turn; each begins with its separator."""

DRAWS_BY_FREQUENCY = 20
"""Draws in proportion to frequency before ``_Words.draw`` lists all candidates, which is rarely needed."""


@dataclass(frozen=True)
class NoiseSettings:
    """How much noise of one kind.

    ``row_share``: share of the pool's rows with noise, in [0, 1]; ``int(row_share * N)`` rows. ``word_share``: share of
    the words replaced in each assistant turn of such a row, in [0, 1]; ``boilerplate`` ignores it. Raises RecipeError.
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

    @property
    def growth(self) -> int:
        """By how many characters the content becomes longer."""
        return len(self.text) - (self.end - self.start)


NoiseKind = Callable[[Pool, NoiseSettings, np.random.Generator], list[Edit]]


def corrupt_words(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> list[Edit]:
    """Replace words of assistant turns by words from the assistant turns of other rows.

    A word is a run of letters (with their combining marks) and digits, joined by single apostrophes; an apostrophe at
    its edge is a quotation mark and stays. In each assistant turn ``round(word_share * words)`` words are replaced, at
    least one where ``word_share > 0``. The new word is drawn in proportion to its frequency in the other rows, takes
    the case of the old first character, and differs from the old word by more than case.

    Raises PoolError for a pool of fewer than two rows.
    """
    if len(pool) < 2:
        raise PoolError(
            f"noise 'corrupted' draws its words from other rows, but this pool has {len(pool)} row(s); "
            "use at least two rows, or leave this kind out"
        )
    if settings.word_share == 0:
        return []
    words = _Words(pool)

    def edits_of_row(row: int) -> list[Edit]:
        edits = []
        for turn, content in assistant_contents(pool[row]):
            spans = word_spans(content)
            wanted = len(edits) + min(len(spans), max(1, round(settings.word_share * len(spans))))
            for at in generator.permutation(len(spans)):
                if len(edits) == wanted:
                    break
                start, end = spans[at]
                text = words.draw(row, content[start:end], generator)
                if text is not None:
                    edits.append(Edit(row, turn, start, end, text))
        return edits

    return _edits_of_drawn_rows(pool, "corrupted", settings.row_share, generator, edits_of_row)


def add_boilerplate(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> list[Edit]:
    """Put a stock opener before, and a stock closer after, assistant turns.

    A fair coin decides each, turn by turn; a row where every coin says no still gets one of them. Blank turns are
    skipped, since a separator next to nothing would leave whitespace at the edge of the content.
    """

    def edits_of_row(row: int) -> list[Edit]:
        turns = [(turn, content) for turn, content in assistant_contents(pool[row]) if content.strip()]
        if not turns:
            return []
        is_added = generator.random((len(turns), 2)) < 0.5
        if not is_added.any():
            is_added[generator.integers(len(turns)), generator.integers(2)] = True
        edits = []
        for (turn, content), (is_opened, is_closed) in zip(turns, is_added, strict=True):
            if is_opened:
                edits.append(Edit(row, turn, 0, 0, OPENERS[generator.integers(len(OPENERS))]))
            if is_closed:
                edits.append(Edit(row, turn, len(content), len(content), CLOSERS[generator.integers(len(CLOSERS))]))
        return edits

    return _edits_of_drawn_rows(pool, "boilerplate", settings.row_share, generator, edits_of_row)


NOISE_KINDS: dict[str, NoiseKind] = {"corrupted": corrupt_words, "boilerplate": add_boilerplate}
"""Every kind by name, in the order of planting: kinds that replace text come before kinds that only insert it."""


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


def _edits_of_drawn_rows(
    pool: Pool, kind: str, row_share: float, generator: np.random.Generator, edits_of_row: Callable[[int], list[Edit]]
) -> list[Edit]:
    """Edits of the first ``int(row_share * N)`` rows in a random order, skipping rows without an edit."""
    wanted = int(row_share * len(pool))
    edited = filter(None, (edits_of_row(int(row)) for row in generator.permutation(len(pool))))
    taken = list(islice(edited, wanted))
    if len(taken) < wanted:
        logger.warning("noise %r: %d rows were asked for, but only %d can take it", kind, wanted, len(taken))
    return [edit for of_row in taken for edit in of_row]


class _Words:
    """All words of the assistant turns, row after row: those of row i are ``words[offsets[i]:offsets[i + 1]]``."""

    def __init__(self, pool: Pool) -> None:
        rows = [
            [content[start:end] for _, content in assistant_contents(row) for start, end in word_spans(content)]
            for row in pool
        ]
        self.words = [word for row in rows for word in row]
        self.offsets = offsets_of(len(row) for row in rows)
        self.counts = Counter(self.words)

    def draw(self, row: int, original: str, generator: np.random.Generator) -> str | None:
        """A word of another row, in the case of ``original`` and different from it; None if there is none."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        own = end - start
        elsewhere = len(self.words) - own
        if elsewhere == 0:
            return None
        for _ in range(DRAWS_BY_FREQUENCY):
            position = int(generator.integers(elsewhere))
            word = _in_case_of(self.words[position if position < start else position + own], original)
            if word.casefold() != original.casefold():
                return word
        own_counts = Counter(self.words[start:end])
        cased = (_in_case_of(word, original) for word, count in self.counts.items() if count > own_counts[word])
        left = [word for word in cased if word.casefold() != original.casefold()]
        return left[generator.integers(len(left))] if left else None


def _in_case_of(word: str, original: str) -> str:
    """``word`` with the case of the first character of ``original``; a character without case changes nothing."""
    if original[0].istitle():
        return word[0].title() + word[1:]  # title, not upper: the ligature "ﬁ" becomes "Fi"
    if original[0].islower():
        return word[0].lower() + word[1:]
    return word
