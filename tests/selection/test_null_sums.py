"""Sums of sentences against their null: by hand, against known distributions, and against brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.selection.null_sums import QUANTILE, SumNull, fit_null, judge_groups

NAN = np.nan


def column(*rows: list[float]) -> Ragged:
    return Ragged.from_rows(rows, np.float32)


def groups(*rows: list[int]) -> Ragged:
    return Ragged.from_rows(rows, np.int64)


def drawn(sizes: np.ndarray, shared: float, seed: int) -> tuple[Ragged, Ragged]:
    """Normal scores of variance 1 in groups of these sizes, of which the share ``shared`` is common to the group."""
    random = np.random.default_rng(seed)
    common = np.repeat(random.normal(size=len(sizes)), sizes)
    own = random.normal(size=int(sizes.sum()))
    values = math.sqrt(shared) * common + math.sqrt(1 - shared) * own
    offsets = np.array([0, len(values)])
    return Ragged(values, offsets), Ragged(np.repeat(np.arange(len(sizes)), sizes), offsets)


def test_the_moments_of_a_small_null_by_hand():
    """Two groups, {1, 3} and {−2}; one token has no group, one no score. Mean 2/3; squared deviations 1/9, 49/9, 64/9,
    variance 38/9; one pair of products (1/3)(7/3) = 7/9, so the correlation is (7/9) / (38/9)."""
    null = fit_null([column([1, 3, 9], [NAN, -2])], groups([0, 0, -1], [1, 1]))
    assert null.mean == pytest.approx(2 / 3)
    assert null.deviation == pytest.approx(math.sqrt(38 / 9))
    assert null.correlation == pytest.approx(7 / 38)
    assert null.sums == 2
    first = (4 - 4 / 3) / math.sqrt(38 / 9 * 2 * (1 + 7 / 38))
    second = (-2 - 2 / 3) / math.sqrt(38 / 9)
    assert null.cut == pytest.approx(second + QUANTILE * (first - second))  # numpy interpolates between the two
    assert not null.is_known  # from two sums no quantile is known


def test_without_correlation_the_deviation_grows_with_the_root_of_the_length():
    null = SumNull(0.5, 2.0, 0.0, -2.0, 1000)
    sizes = np.array([1, 4, 100])
    assert null.standardize(sizes * 0.5 + 2 * np.sqrt(sizes), sizes, sizes) == pytest.approx(np.ones(3))


def test_spreads_by_hand():
    """Two groups of spreads (1, 2) and (1): scores 1, 4 and −3. Mean 2/4; residuals 1/2, 3 and −7/2; variance
    (1/4 + 9 + 49/4) / 6; one pair of residuals 3/2, of spreads 2."""
    null = fit_null([column([1, 4, -3])], groups([5, 5, 3]), column([1, 2, 1]))
    variance = 21.5 / 6
    assert (null.mean, null.deviation) == pytest.approx((0.5, math.sqrt(variance)))
    assert null.correlation == pytest.approx(1.5 / (2 * variance))
    judged = judge_groups(column([1, 4, -3]), groups([5, 5, 3]), replace(null, sums=100), column([1, 2, 1]))
    first = 3.5 / math.sqrt(variance * ((1 - null.correlation) * 5 + null.correlation * 9))
    np.testing.assert_allclose(judged.standardized.values, [first, first, -3.5 / math.sqrt(variance)])


@pytest.mark.parametrize("shared", [0.0, 0.3])
def test_sums_of_every_length_are_standard_under_the_null(shared):
    """Also where tokens of a sentence go together, for which the root of the length is too little."""
    sizes = np.repeat([2, 8, 32], 3000)
    scores, group = drawn(sizes, shared, 0)
    null = fit_null([scores], group)
    assert null.correlation == pytest.approx(shared, abs=0.02)
    fresh, group = drawn(sizes, shared, 1)
    judged = judge_groups(fresh, group, null)
    first_of_group = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    of_group = judged.standardized.values[first_of_group]
    for size in (2, 8, 32):
        assert of_group[sizes == size].std() == pytest.approx(1, abs=0.05)
        assert (of_group[sizes == size] < null.cut).mean() == pytest.approx(QUANTILE, abs=0.006)
    assert judged.below / judged.groups == pytest.approx(QUANTILE, abs=0.004)
    assert judged.expected == pytest.approx(90)


def test_groups_below_the_cut_are_found_and_the_others_left():
    sizes = np.full(400, 10)
    null = fit_null([drawn(sizes, 0.0, seed)[0] for seed in range(8)], drawn(sizes, 0.0, 0)[1])
    scores, group = drawn(sizes, 0.0, 9)
    low = scores.values.copy()
    low[:200] -= 3  # the first twenty groups
    judged = judge_groups(scores.with_values(low), group, null)
    assert judged.is_below.values[:200].all()
    assert judged.is_below.values[200:].mean() < 0.03
    assert judged.is_more_than_chance
    assert np.array_equal(judged.is_below.values, judged.standardized.values < null.cut)


def test_no_more_than_chance_is_nothing():
    """Under the null itself the cut is passed by a hundredth, which is no finding."""
    sizes = np.full(500, 6)
    null = fit_null([drawn(sizes, 0.0, seed)[0] for seed in range(8)], drawn(sizes, 0.0, 0)[1])
    found = [judge_groups(drawn(sizes, 0.0, seed)[0], drawn(sizes, 0.0, 0)[1], null) for seed in range(100, 140)]
    assert sum(judged.is_more_than_chance for judged in found) <= 6  # 5 % of 40, and some luck
    assert np.mean([judged.below for judged in found]) == pytest.approx(5, abs=1.5)


@pytest.mark.parametrize(("below", "more"), [(0, False), (1, False), (3, False), (4, True)])
def test_the_binomial_bound_by_hand(below, more):
    """Of 100 groups at a rate of 1 %: P(at least 3) = 0.079, P(at least 4) = 0.018."""
    scores = column([-10.0] * below + [0.0] * (100 - below))
    judged = judge_groups(scores, groups(list(range(100))), SumNull(0.0, 1.0, 0.0, -2.0, 1000))
    assert (judged.groups, judged.below) == (100, below)
    assert judged.is_more_than_chance is more


def test_what_has_no_score_or_no_group_is_not_judged():
    null = SumNull(0.0, 1.0, 0.0, -1.0, 100)
    judged = judge_groups(column([-5, NAN, -5], [-5]), groups([7, 7, -1], [2]), null)
    assert np.array_equal(judged.standardized.values, [-5, NAN, NAN, -5], equal_nan=True)
    assert judged.is_below.values.tolist() == [True, False, False, True]


@pytest.mark.parametrize("null", [SumNull(0.0, 1.0, 0.0, -1.0, 99), SumNull(0.0, 0.0, 0.0, -math.inf, 1000)])
def test_a_null_that_is_not_known_finds_nothing(null):
    judged = judge_groups(column([-50.0]), groups([0]), null)
    assert not null.is_known
    assert (judged.groups, judged.below, judged.is_more_than_chance) == (1, 0, False)
    assert np.isnan(judged.standardized.values).all()


def test_sure_and_open_tokens_compare():
    """Groups of tokens that spread by a tenth, and of others: a hundredth of either is below the cut."""
    sizes = np.full(4000, 5)
    spread = np.repeat(np.where(np.arange(4000) % 2, 0.1, 1.0), 5)
    columns = [drawn(sizes, 0.2, seed) for seed in (0, 1)]
    null_scores, fresh = (scores.with_values(scores.values * spread) for scores, _ in columns)
    group, widths = columns[0][1], columns[0][0].with_values(spread)
    judged = judge_groups(fresh, group, fit_null([null_scores], group, widths), widths)
    for is_part in (spread == 1, spread < 1):
        assert judged.is_below.values[is_part].mean() == pytest.approx(QUANTILE, abs=0.005)


def test_faults_are_named():
    with pytest.raises(ValueError, match="no token of a group"):
        fit_null([column([1.0])], groups([-1]))
    with pytest.raises(ValueError, match="rows"):
        fit_null([column([1.0])], groups([0], [1]))


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(-1, 4)), min_size=2, max_size=40), st.integers(1, 3))
def test_the_moments_equal_those_over_all_pairs(tokens, columns):
    values = np.array([value for value, _ in tokens], dtype=np.float64)
    group = np.array([number for _, number in tokens])
    if not (group >= 0).any():
        return
    scores = [Ragged(values * (1 + n), np.array([0, len(values)])) for n in range(columns)]
    null = fit_null(scores, Ragged(group, np.array([0, len(group)])))
    used = np.concatenate([column.values[group >= 0] for column in scores])
    products = [
        (column.values[i] - used.mean()) * (column.values[j] - used.mean())
        for column in scores
        for i in range(len(group))
        for j in range(len(group))
        if i != j and group[i] == group[j] >= 0
    ]
    assert null.mean == pytest.approx(used.mean(), abs=1e-9)
    assert null.deviation == pytest.approx(used.std(), abs=1e-9)
    if used.var() > 1e-6:
        expected = float(np.clip(np.mean(products) / used.var(), 0, 1)) if products else 0.0
        assert null.correlation == pytest.approx(expected, abs=1e-6)
