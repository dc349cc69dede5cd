from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.ragged import Ragged
from tokenclean.scoring import PairedDifference, mean_loss, paired_difference

NAN = math.nan


def column(rows) -> Ragged:
    return Ragged.from_rows(rows, dtype=np.float32)


def test_against_a_computation_by_hand():
    baseline = column([[NAN, 1.0, 2.0], [NAN, NAN], [3.0], [NAN, 1.0, 1.0, 1.0]])
    losses = column([[NAN, 0.5, 1.5], [NAN, NAN], [4.0], [NAN, 0.5, 0.5, 1.0]])
    found = paired_difference(losses, baseline)
    # d = (-1, 1, -1) and n = (2, 1, 3) for the three conversations with a response: D = -1/6
    residuals = [-1 + 2 / 6, 1 + 1 / 6, -1 + 3 / 6]
    error = math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 6
    half = 4.302652729911275 * error
    assert (found.rows, found.tokens) == (3, 6)
    assert found.loss == pytest.approx(8 / 6)
    assert found.baseline_loss == pytest.approx(9 / 6)
    assert found.difference == pytest.approx(-1 / 6)
    assert found.loss - found.baseline_loss == pytest.approx(found.difference)
    assert (found.low, found.high) == (pytest.approx(-1 / 6 - half), pytest.approx(-1 / 6 + half))
    assert not found.is_better
    assert not found.is_worse


def test_better_and_worse_need_the_whole_interval():
    def interval(low, high):
        return PairedDifference(1.0, 1.0, (low + high) / 2, low, high, 5, 50)

    assert [(d.is_better, d.is_worse) for d in map(interval, (-2.0, 0.5, -1.0, -1.0), (-0.5, 2.0, 1.0, 0.0))] == [
        (True, False),
        (False, True),
        (False, False),
        (False, False),
    ]


def test_the_same_difference_everywhere_has_no_width():
    baseline = column([[1.0, 2.0], [3.0, 4.0, 5.0], [0.5]])
    found = paired_difference(baseline.map_values(lambda v: v - 0.25), baseline)
    assert (found.low, found.difference, found.high) == (-0.25, -0.25, -0.25)
    assert found.is_better


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_swapping_the_models_mirrors_the_interval(data, seed):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=6))
    random = np.random.default_rng(seed)
    losses, baseline = (column([random.exponential(size=n) for n in lengths]) for _ in range(2))
    one, other = paired_difference(losses, baseline), paired_difference(baseline, losses)
    assert (one.low, one.difference, one.high) == pytest.approx((-other.high, -other.difference, -other.low))


@pytest.mark.parametrize("truth", [0.0, -0.03])
def test_the_interval_covers_the_truth_in_95_of_100_clustered_sets(truth):
    """40 conversations of unequal length whose tokens share an offset: tokens alone would cover far too rarely."""
    random = np.random.default_rng(1)
    covered = covered_by_tokens = 0
    for _ in range(2000):
        lengths = random.integers(20, 200, size=40)
        rows = np.repeat(np.arange(40), lengths)
        offsets = random.normal(0, 0.2, size=40)[rows]
        noise = random.normal(0, 0.5, size=len(rows))
        baseline = Ragged(np.full(len(rows), 2.0), np.concatenate([[0], np.cumsum(lengths)]))
        found = paired_difference(baseline.with_values(2.0 + truth + offsets + noise), baseline)
        covered += found.low <= truth <= found.high
        half = 1.96 * (offsets + noise).std() / math.sqrt(len(rows))
        covered_by_tokens += abs(found.difference - truth) <= half
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)
    assert covered_by_tokens / 2000 < 0.6


def test_mean_loss_is_the_mean_over_tokens():
    assert mean_loss(column([[NAN, 1.0, 2.0], [6.0], [NAN]])) == pytest.approx(3.0)


@pytest.mark.parametrize("rows", [[], [[NAN], [NAN, NAN]]])
def test_a_mean_over_no_token_is_refused(rows):
    with pytest.raises(ValueError, match="no token has a loss"):
        mean_loss(column(rows))


def test_fewer_than_two_conversations_are_refused():
    for rows in ([], [[1.0, 2.0]], [[1.0, 2.0], [NAN]]):
        with pytest.raises(ValueError, match=f"at least 2 held-out conversations, got {min(len(rows), 1)}"):
            paired_difference(column(rows), column(rows))


def test_columns_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="2 and 1 rows"):
        paired_difference(column([[1.0], [2.0]]), column([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="differ in row 1"):
        paired_difference(column([[1.0], [2.0]]), column([[1.0], [2.0, 3.0]]))
    with pytest.raises(ValueError, match="losses at different tokens"):
        paired_difference(column([[NAN, 1.0], [2.0]]), column([[1.0, NAN], [2.0]]))
