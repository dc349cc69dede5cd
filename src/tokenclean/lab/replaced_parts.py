"""Parts of an answer replaced by others of their kind: words, names, numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from tokenclean.lab.edits import (
    Edit,
    NoiseSettings,
    RowEdits,
    assistant_contents,
    needs_other_rows,
    sentence_spans,
    word_spans,
)
from tokenclean.pool.conversation import Pool
from tokenclean.ragged import offsets_of

DRAWS_BY_FREQUENCY = 20
"""Draws in proportion to frequency before ``PartsOfRows.draw`` lists all candidates, which is rarely needed."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LIST_MARKER = re.compile(r"^[ \t]*\d+[.)](?=\s)", re.MULTILINE)

PartsOf = Callable[[str], list[tuple[int, int]]]
"""[start, end) of the parts of a text, in order."""


def corrupt_words(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Replace words of assistant turns by words from the assistant turns of other rows.

    A word is a run of letters (with their combining marks) and digits, joined by single apostrophes; an apostrophe at
    its edge is a quotation mark and stays. In each assistant turn ``round(word_share * words)`` words are replaced, at
    least one where ``word_share > 0``. The new word is drawn in proportion to its frequency in the other rows, takes
    the case of the old first character, and differs from the old word by more than case.

    Raises PoolError for a pool of fewer than two rows.
    """
    needs_other_rows(pool, "corrupted", "words")
    return _replace(pool, settings, generator, word_spans, PartsOfRows(pool, word_spans).draw)


def replace_names(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Replace names (``name_spans``) of assistant turns by names from the assistant turns of other rows, as
    ``corrupt_words`` does with words: fluent, and wrong. Raises PoolError for a pool of fewer than two rows."""
    needs_other_rows(pool, "names", "names")
    return _replace(pool, settings, generator, name_spans, PartsOfRows(pool, name_spans).draw)


def change_numbers(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Change numbers (``number_spans``) of assistant turns into others with as many digits in the same form.

    In each turn ``round(word_share * numbers)`` are changed, at least one where ``word_share > 0``.
    """
    return _replace(pool, settings, generator, number_spans, _other_number)


def name_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each run of capitalised words with one space between; a sentence's first word, which is
    capitalised anyway, and words of one letter are in none."""
    first_words = {start for start, _ in sentence_spans(text)}
    names: list[tuple[int, int]] = []
    for start, end in word_spans(text):
        if end - start < 2 or not text[start].istitle() or start in first_words:
            continue
        if names and text[names[-1][1] : start] == " ":
            names[-1] = names[-1][0], end
        else:
            names.append((start, end))
    return names


def number_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each number in digits, with the points and commas inside it; none for the numbers of a list."""
    markers = [match.span() for match in _LIST_MARKER.finditer(text)]
    spans = (match.span() for match in _NUMBER.finditer(text))
    return [span for span in spans if not any(start <= span[0] < end for start, end in markers)]


class PartsOfRows:
    """All parts of the assistant turns, row after row: those of row i are ``parts[offsets[i]:offsets[i + 1]]``."""

    def __init__(self, pool: Pool, parts_of: PartsOf) -> None:
        rows = [
            [content[start:end] for _, content in assistant_contents(row) for start, end in parts_of(content)]
            for row in pool
        ]
        self.parts = [part for row in rows for part in row]
        self.offsets = offsets_of(len(row) for row in rows)
        self.counts = Counter(self.parts)

    def of_another_row(self, row: int, generator: np.random.Generator) -> str | None:
        """A part of another row, drawn in proportion to its frequency; None if there is none."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        own = end - start
        elsewhere = len(self.parts) - own
        if elsewhere == 0:
            return None
        position = int(generator.integers(elsewhere))
        return self.parts[position if position < start else position + own]

    def draw(self, row: int, original: str, generator: np.random.Generator) -> str | None:
        """A part of another row, in the case of ``original`` and different from it; None if there is none."""
        for _ in range(DRAWS_BY_FREQUENCY):
            part = self.of_another_row(row, generator)
            if part is None:
                return None
            part = _in_case_of(part, original)
            if part.casefold() != original.casefold():
                return part
        own_counts = Counter(self.parts[int(self.offsets[row]) : int(self.offsets[row + 1])])
        cased = (_in_case_of(part, original) for part, count in self.counts.items() if count > own_counts[part])
        left = [part for part in cased if part.casefold() != original.casefold()]
        return left[generator.integers(len(left))] if left else None


def _replace(
    pool: Pool,
    settings: NoiseSettings,
    generator: np.random.Generator,
    parts_of: PartsOf,
    draw: Callable[[int, str, np.random.Generator], str | None],
) -> RowEdits:
    """Edits that replace ``word_share`` of the parts of each assistant turn of a row, at least one unless it is 0.

    ``draw``: another part in place of one of a row, or None.
    """

    def edits_of_row(row: int) -> list[Edit]:
        edits = []
        for turn, content in assistant_contents(pool[row]) if settings.word_share > 0 else ():
            spans = parts_of(content)
            wanted = len(edits) + min(len(spans), max(1, round(settings.word_share * len(spans))))
            for at in generator.permutation(len(spans)):
                if len(edits) == wanted:
                    break
                start, end = spans[at]
                text = draw(row, content[start:end], generator)
                if text is not None:
                    edits.append(Edit(row, turn, start, end, text))
        return edits

    return edits_of_row


def _other_number(row: int, original: str, generator: np.random.Generator) -> str:
    """A number of the same form: as many digits, the same points and commas, and no new leading zero."""
    while True:
        digits = [str(generator.integers(10)) if character.isdigit() else character for character in original]
        if original[0] != "0" and digits[0] == "0":
            digits[0] = str(generator.integers(1, 10))
        if (number := "".join(digits)) != original:
            return number


def _in_case_of(part: str, original: str) -> str:
    """``part`` with the case of the first character of ``original``; a character without case changes nothing."""
    if original[0].istitle():
        return part[0].title() + part[1:]  # title, not upper: the ligature "ﬁ" becomes "Fi"
    if original[0].islower():
        return part[0].lower() + part[1:]
    return part
