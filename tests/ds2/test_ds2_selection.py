from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ds2.neighbours import Neighbours
from tokenclean.ds2.selection import long_tail_scores, rank_correlation, select_best, shared_selection


def test_the_long_tail_score_is_its_formula():
    distances = np.array([[0, 0, 9], [0.2, 0.4, 9]], dtype=np.float32)
    found = long_tail_scores(Neighbours(np.zeros((2, 3), dtype=np.int64), distances), 2)
    np.testing.assert_allclose(found, [0, 2 / (1 + np.exp(-0.3)) - 1], atol=1e-7)


rows = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.1, 0.1, 0.5, 0.9])), min_size=1, max_size=40)


@given(rows, st.integers(1, 50))
def test_the_best_are_chosen_class_by_class_then_the_rarest(given_rows, count):
    labels, rare = map(np.array, zip(*given_rows, strict=True))
    found = select_best(labels, rare, count).tolist()
    left, expected = count, []
    for label in range(5, -1, -1):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: (-rare[i], i))
        expected += members[:left]
        left -= len(members[:left])
    assert found == expected


def test_rank_correlation_with_ties_is_the_correlation_of_mean_ranks():
    a, b = np.array([1, 2, 2, 4, 5, 5]), np.array([2, 1, 3, 3, 6, 4])
    ranks = np.array([1, 2.5, 2.5, 4, 5.5, 5.5]), np.array([2, 1, 3.5, 3.5, 6, 5])
    assert rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert np.isnan(rank_correlation(a, np.ones(6)))


def test_shared_selections():
    assert shared_selection([np.array([1, 2, 3]), np.array([3, 2]), np.array([2, 9])]) == 0.5
