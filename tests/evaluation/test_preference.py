"""Preference for clean answers: the tokens that differ, and the measure, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.evaluation.intervals import mean_interval
from tokenclean.evaluation.preference import (
    Version,
    differing_tokens,
    pair_margins,
    preference,
    preference_change,
)
from tokenclean.ragged import Ragged


def version(ids: list[list[int]], losses: list[list[float]]) -> Version:
    """Rows with one prompt token in front of the response."""
    rows = Ragged.from_rows([[99, *row] for row in ids], np.int64)
    return Version(
        rows,
        rows.map_values(lambda values: values != 99),
        Ragged.from_rows([[math.nan, *row] for row in losses], np.float32),
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("abc", "axc", ("010", "010")),
        ("abc", "abc", ("000", "000")),
        ("ac", "abbc", ("01", "0110")),  # where the second has bb the first has c
        ("abc", "c", ("110", "1")),
        ("ab", "a", ("01", "0")),  # at the end nothing comes instead
        ("", "a", ("", "1")),
        ("abxcd", "aycdd", ("01100", "01001")),
    ],
)
def test_differing_tokens(first: str, second: str, expected: tuple[str, str]):
    marks = differing_tokens(*(np.array([ord(c) for c in text], dtype=np.int64) for text in (first, second)))
    assert tuple("".join(map(str, mark.astype(int))) for mark in marks) == expected


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_what_is_not_marked_is_common(first: list[int], second: list[int]):
    a, b = np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)
    of_a, of_b = differing_tokens(a, b)
    assert (of_a.any() or of_b.any()) != (first == second)
    for own, other in ((a[~of_a], b), (b[~of_b], a)):  # in the other's order
        rest = iter(other.tolist())
        assert all(token in rest for token in own.tolist())


def test_margins_by_hand():
    clean = version([[1, 2, 3], [1, 2], [1, 2, 3]], [[1, 2, 9], [1, 1], [5, 5, 4]])
    noisy = version([[1, 7, 8, 3], [1, 2], [1, 6, 2, 3]], [[1, 4, 6, 9], [2, 2], [5, 1, 5, 4]])
    # 2 against 7 8: 5 - 2. The same tokens. An insertion, against the 2 that comes instead: 1 - 5.
    np.testing.assert_array_equal(pair_margins(clean, noisy), [3.0, math.nan, -4.0])
    swapped = pair_margins(noisy, clean)
    np.testing.assert_array_equal(swapped, [-3.0, math.nan, 4.0])
    with pytest.raises(ValueError, match="as many clean rows as noisy ones: 3, 1"):
        pair_margins(clean, version([[1]], [[1]]))


def test_preference_counts_wins_ties_and_equal_pairs():
    found = preference(np.array([3.0, math.nan, -1.0, 0.0, 2.0]))
    assert found.margin.mean == 1.0
    assert found.wins.mean == 2.5 / 4
    assert (found.equal, found.margin.items) == (1, 4)
    assert 0 <= found.wins.low < 0.625 < found.wins.high <= 1
    with pytest.raises(ValueError, match="at least 2"):
        preference(np.array([3.0, math.nan]))


def test_change_is_paired():
    baseline = np.array([5.0, -3.0, math.nan, 1.0])
    change = preference_change(baseline + 0.5, baseline)
    assert (change.mean, change.low, change.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same pairs"):
        preference_change(np.zeros(4), baseline)


def test_a_mean_s_interval_covers_it_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = [mean_interval(generator.exponential(size=40), draws=400, seed=n) for n in range(300)]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in draws])
    assert 0.90 < covered < 0.99


@pytest.mark.parametrize("values", [[1.0], [], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_an_interval_needs_two_finite_values(values):
    with pytest.raises(ValueError, match="at least 2 finite values"):
        mean_interval(np.array(values))
