"""Sentences, clauses and content words, and flags carried to the end of a passage, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.lab.passages import clause_spans, content_word_starts, fill_passages
from tokenclean.ragged import Ragged


def test_clauses_are_parts_of_sentences():
    text = "He came, saw; and won 1,000 – no: 2,000. A well-known\nend"
    parts = [text[start:end] for start, end in clause_spans(text)]
    assert parts == ["He came,", "saw;", "and won 1,000 –", "no:", "2,000.", "A well-known", "end"]
    assert clause_spans("") == []


def test_content_words_begin_where_no_function_word_does():
    text = "It isn’t in Paris, but 12 km off."
    assert [text[start:].split()[0] for start in content_word_starts(text)] == ["Paris,", "12", "km"]


def column(*rows: list, dtype: type = np.float64) -> Ragged:
    return Ragged.from_rows(rows, dtype)


def test_an_onset_is_carried_to_the_end_of_its_passage_and_no_further():
    passage = column([-1, 0, 0, 0, 1, 1, -1], [2, 2, 2, 3], dtype=np.int64)
    scores = column([0.9, 0.1, 0.8, 0.2, 0.3, 0.4, 0.5], [0.6, 0.9, 0.7, 0.1])
    flagged = column([1, 0, 1, 0, 0, 0, 0], [1, 0, 1, 0], dtype=np.bool_)
    begins = column([1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1], dtype=np.bool_)
    filled, flags = fill_passages(scores, flagged, begins, passage)
    # Row 0: the flag outside of any passage stays alone; 0.8 goes one further. Row 1: 0.6 lifts no higher score, and
    # the flagged token that begins no content word stays flagged without being an onset.
    assert [row.tolist() for row in filled] == [[0.9, 0.1, 0.8, 0.8, 0.3, 0.4, 0.5], [0.6, 0.9, 0.7, 0.1]]
    assert [row.tolist() for row in flags] == [[1, 0, 1, 1, 0, 0, 0], [1, 1, 1, 0]]


def test_two_onsets_in_one_passage_carry_the_higher_score_from_where_it_begins():
    passage = column([0] * 5, dtype=np.int64)
    flagged = column([0, 1, 0, 1, 0], dtype=np.bool_)
    filled, flags = fill_passages(column([0.1, 0.6, 0.2, 0.9, 0.3]), flagged, flagged, passage)
    assert filled[0].tolist() == [0.1, 0.6, 0.6, 0.9, 0.9]
    assert flags[0].tolist() == [False, True, True, True, True]


def test_columns_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="row"):
        fill_passages(column([1.0]), column([1], dtype=bool), column([1], dtype=bool), column([0, 0], dtype=np.int64))


tokens = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20)


@given(tokens)
def test_filling_is_what_its_definition_says_lowers_nothing_and_is_done_once(row):
    scores = column([token[0] for token in row])
    flagged, begins = (column([token[place] for token in row], dtype=np.bool_) for place in (1, 2))
    passage = column(np.cumsum([token[3] for token in row]).tolist(), dtype=np.int64)
    filled, flags = fill_passages(scores, flagged, begins, passage)
    for token, number in enumerate(passage.values):
        onsets = [
            place
            for place in range(token + 1)
            if flagged.values[place] and begins.values[place] and passage.values[place] == number
        ]
        assert flags.values[token] == (flagged.values[token] or bool(onsets))
        assert filled.values[token] == max([scores.values[token], *scores.values[onsets]])
    again = fill_passages(filled, flags, begins, passage)
    np.testing.assert_array_equal(again[1].values, flags.values)
