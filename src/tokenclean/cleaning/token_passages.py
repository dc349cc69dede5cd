"""Which sentence, clause and word of an answer each token belongs to."""

from __future__ import annotations

import numpy as np

from tokenclean.lab.edits import sentence_spans
from tokenclean.lab.passages import Passages, clause_spans, content_word_starts
from tokenclean.pool import Pool
from tokenclean.tokens import TokenizedPool


def find_passages(tokens: TokenizedPool, pool: Pool) -> Passages:
    """Sentences, clauses and content words of the rows' answers, by the characters of their tokens. A token at the
    border of two sentences belongs to the later one."""
    shape = len(tokens.input_ids.values)
    sentence, clause = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    begins = np.zeros(shape, dtype=bool)
    sentences = clauses = 0
    for row, conversation in enumerate(pool):
        first, last = (int(place) for place in tokens.input_ids.offsets[row : row + 2])
        starts, ends = tokens.char_start[row], tokens.char_end[row]
        for content in tokens.contents[row]:
            text = conversation.turns[content.turn].content
            for start, end in sentence_spans(text):
                _mark(sentence[first:last], starts, ends, content.characters(start, end), sentences)
                sentences += 1
            for start, end in clause_spans(text):
                _mark(clause[first:last], starts, ends, content.characters(start, end), clauses)
                clauses += 1
            for start in content_word_starts(text):
                _mark(begins[first:last], starts, ends, content.characters(start, start + 1), True)
    return Passages(*(tokens.input_ids.with_values(values) for values in (sentence, clause, begins)))


def _mark(column: np.ndarray, starts: np.ndarray, ends: np.ndarray, span: tuple[int, int], value: int) -> None:
    """Set the tokens [starts, ends) that share a character with the span. Both rise, so these are a slice."""
    if span[0] < span[1]:
        column[np.searchsorted(ends, span[0], side="right") : np.searchsorted(starts, span[1], side="left")] = value
