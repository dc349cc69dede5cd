"""Scores of groups, by hand and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.selection.group_scores import group_scores


def test_by_hand():
    scores = Ragged(np.array([np.nan, 1.0, 3.0, 5.0, -2.0, np.nan], dtype=np.float32), np.array([0, 4, 6]))
    group = Ragged(np.array([0, 7, 7, -1, 2, 2]), np.array([0, 4, 6]))
    expected = [np.nan, 4 / math.sqrt(2), 4 / math.sqrt(2), 5.0, -2.0, np.nan]
    found = group_scores(scores, group)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.values.dtype == np.float32


@given(st.lists(st.tuples(st.one_of(st.just(math.nan), st.floats(-9, 9)), st.integers(-1, 4)), max_size=40))
def test_against_a_loop(tokens: list[tuple[float, int]]):
    offsets = np.array([0, len(tokens)])
    scores = Ragged(np.array([score for score, _ in tokens], dtype=np.float64), offsets)
    group = Ragged(np.array([number for _, number in tokens], dtype=np.int64), offsets)
    expected = []
    for score, number in tokens:
        of_group = [other for other, its in tokens if its == number and not math.isnan(other)]
        alone = number < 0 or math.isnan(score)
        expected.append(score if alone else sum(of_group) / math.sqrt(len(of_group)))
    np.testing.assert_allclose(group_scores(scores, group).values, expected, atol=1e-9)


def test_columns_have_to_be_aligned():
    with pytest.raises(ValueError, match="1 and 2 rows"):
        group_scores(Ragged(np.zeros(2), np.array([0, 2])), Ragged(np.zeros(2, np.int64), np.array([0, 1, 2])))
