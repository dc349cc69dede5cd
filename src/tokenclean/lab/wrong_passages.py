"""Whole sentences and answers that do not belong: of another row, of another language, or the same once more."""

from __future__ import annotations

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
from tokenclean.lab.replaced_parts import PartsOfRows
from tokenclean.pool.conversation import Pool

FOREIGN_SENTENCES = (
    "Weitere Angaben dazu stehen im nächsten Abschnitt.",
    "Das lässt sich am besten an einem Beispiel zeigen.",
    "Il faut aussi tenir compte de la saison et du prix.",
    "La plupart des visiteurs arrivent tôt le matin.",
    "El resultado depende sobre todo de la calidad del agua.",
    "Conviene repetir la prueba al cabo de una semana.",
    "Nella maggior parte dei casi basta aspettare qualche minuto.",
    "De meeste mensen merken het verschil pas na een maand.",
    "A maior parte das lojas fecha mais cedo ao domingo.",
    "Большинство людей замечает разницу только через месяц.",
    "多くの場合、数分待つだけで十分です。",
    "大多数情况下，等几分钟就够了。",
)
"""Sentences that ``other_language`` puts in place of one of an answer's."""

_SHORTEST_SENTENCE = 4
_REPEATS = (2, 6)  # so many times a sentence is repeated, the end excluded


def swap_answers(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Replace the last answer of a row by that of another row: fluent, and no answer to the question.

    Raises PoolError for a pool of fewer than two rows.
    """
    needs_other_rows(pool, "swapped", "answers")
    answers = [_written(pool, row)[-1:] for row in range(len(pool))]
    others = [answer[0][1] for answer in answers if answer]

    def edits_of_row(row: int) -> list[Edit]:
        if not answers[row]:
            return []
        [(turn, content)] = answers[row]
        for place in generator.permutation(len(others)):
            if others[place] != content:
                return [Edit(row, turn, 0, len(content), others[place])]
        return []

    return edits_of_row


def replace_with_foreign(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Replace one sentence of a row's answers by one of ``FOREIGN_SENTENCES``."""

    def edit(row: int, turn: int, content: str, start: int, end: int) -> Edit | None:
        left = [sentence for sentence in FOREIGN_SENTENCES if sentence != content[start:end]]
        return Edit(row, turn, start, end, left[generator.integers(len(left))])

    return _one_sentence_a_row(pool, generator, edit)


def add_off_topic(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Put a sentence of another row's answers, of four words or more, behind one sentence of a row's.

    Raises PoolError for a pool of fewer than two rows.
    """
    needs_other_rows(pool, "off_topic", "sentences")
    sentences = PartsOfRows(pool, _long_sentence_spans)

    def edit(row: int, turn: int, content: str, start: int, end: int) -> Edit | None:
        sentence = sentences.of_another_row(row, generator)
        return None if sentence is None else Edit(row, turn, end, end, f" {sentence}")

    return _one_sentence_a_row(pool, generator, edit)


def repeat_sentences(pool: Pool, settings: NoiseSettings, generator: np.random.Generator) -> RowEdits:
    """Repeat one sentence of a row's answers two to five times behind itself, as a model does that is caught in a
    loop."""

    def edit(row: int, turn: int, content: str, start: int, end: int) -> Edit | None:
        return Edit(row, turn, end, end, f" {content[start:end]}" * int(generator.integers(*_REPEATS)))

    return _one_sentence_a_row(pool, generator, edit)


def _one_sentence_a_row(
    pool: Pool, generator: np.random.Generator, edit: Callable[[int, int, str, int, int], Edit | None]
) -> RowEdits:
    """``edit`` of one sentence, content[start:end], of each row."""

    def edits_of_row(row: int) -> list[Edit]:
        turns = _written(pool, row)
        if not turns:
            return []
        turn, content = turns[generator.integers(len(turns))]
        spans = sentence_spans(content)
        found = edit(row, turn, content, *spans[generator.integers(len(spans))])
        return [] if found is None else [found]

    return edits_of_row


def _written(pool: Pool, row: int) -> list[tuple[int, str]]:
    """(turn, content) of the row's answers that are not blank."""
    return [(turn, content) for turn, content in assistant_contents(pool[row]) if content.strip()]


def _long_sentence_spans(text: str) -> list[tuple[int, int]]:
    return [(s, e) for s, e in sentence_spans(text) if len(word_spans(text[s:e])) >= _SHORTEST_SENTENCE]
