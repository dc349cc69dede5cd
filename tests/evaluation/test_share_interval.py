"""The interval of a share of things that come in groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tokenclean.evaluation.intervals import share_interval


def test_by_hand():
    """Three groups, the empty one being none: p = 5/10, residuals h − p t of 2, −1 and −1."""
    found = share_interval(np.array([4, 1, 0, 0]), np.array([4, 4, 0, 2]))
    variance = 3 / 2 * (2**2 + 1 + 1) / 10**2
    size = 0.5 * 0.5 / variance * (2.262157 / 4.302653) ** 2  # t of 9 and of 2 degrees of freedom
    assert (found.hits, found.total, found.share) == (5, 10, 0.5)
    assert found.low == pytest.approx(stats.beta.ppf(0.025, size / 2, size / 2 + 1), rel=1e-5)
    assert found.high == pytest.approx(stats.beta.ppf(0.975, size / 2 + 1, size / 2), rel=1e-5)


def test_of_single_things_it_is_nearly_that_of_clopper_and_pearson():
    hits = np.repeat([1, 0], [60, 140])
    found = share_interval(hits, np.ones(200))
    exact = stats.binomtest(60, 200).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.001)


def test_groups_that_do_not_differ_count_as_one_thing_each():
    none, every = share_interval(np.zeros(5), np.full(5, 9)), share_interval(np.full(5, 9), np.full(5, 9))
    assert (none.low, none.high) == pytest.approx((0, 1 - 0.025 ** (1 / 5)))
    assert (every.low, every.high) == pytest.approx((0.025 ** (1 / 5), 1))
    half = share_interval(np.full(4, 1), np.full(4, 2))
    assert half.low == pytest.approx(stats.beta.ppf(0.025, 2, 3))
    alone = share_interval(np.array([1]), np.array([3]))
    assert alone.low == pytest.approx(stats.beta.ppf(0.025, 1 / 3, 5 / 3))


def test_of_nothing_and_of_what_is_no_share():
    for totals in (np.zeros(3), np.zeros(0)):
        found = share_interval(np.zeros(len(totals)), totals)
        assert (found.hits, found.total) == (0, 0)
        assert all(map(math.isnan, (found.share, found.low, found.high)))
    with pytest.raises(ValueError, match="0 <= hits <= totals"):
        share_interval(np.array([2]), np.array([1]))
    with pytest.raises(ValueError, match="of one shape"):
        share_interval(np.array([1]), np.array([1, 1]))


@pytest.mark.parametrize("correlated", [0.0, 0.9])
def test_95_of_100_intervals_hold_the_true_share(correlated):
    """Rows of 1 to 8 sentences; with ``correlated`` most rows are all alike."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        sizes = random.integers(1, 9, size=40)
        alike = random.random(40) < correlated
        of_row = random.random(40) < 0.3
        hits = np.where(alike, of_row * sizes, random.binomial(sizes, 0.3))
        found = share_interval(hits, sizes)
        covered += found.low <= 0.3 <= found.high
    assert 0.93 <= covered / 600 <= 0.995
