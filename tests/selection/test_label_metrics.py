from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged
from tokenclean.selection import (
    LabelNoise,
    auroc,
    average_precision,
    expected_calibration_error,
    jaccard,
    label_noise,
)


def bools(*rows):
    """A bool column from strings of 0 and 1."""
    return Ragged.from_rows([[c == "1" for c in row] for row in rows], dtype=bool)


def test_jaccard_by_hand():
    assert jaccard(bools("110", "01"), bools("011", "01")) == 2 / 4
    assert jaccard(bools("10"), bools("01")) == 0.0
    assert jaccard(bools("10"), bools("10")) == 1.0
    assert jaccard(bools("00"), bools("00")) == 1.0
    assert jaccard(bools(), bools()) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_jaccard_is_that_of_python_sets(labels):
    a, b = ({i for i, pair in enumerate(labels) if pair[side]} for side in (0, 1))
    columns = [Ragged.from_rows([[pair[side] for pair in labels]], dtype=bool) for side in (0, 1)]
    assert jaccard(*columns) == (len(a & b) / len(a | b) if a | b else 1.0)


def test_auroc_by_hand():
    is_positive = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), is_positive) == 1.0
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), is_positive) == 0.0
    assert auroc(np.array([1.0, 3.0, 2.0, 0.0]), is_positive) == 0.75
    assert auroc(np.array([-0.0, 0.0, 0.0, -0.0]), is_positive) == 0.5
    assert auroc(np.array([math.inf, 1.0, -math.inf, 1.0]), is_positive) == 3.5 / 4


@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 5e-324, 2.0]), st.booleans()), max_size=30))
def test_auroc_is_the_share_of_ordered_pairs(tokens):
    positives = [score for score, positive in tokens if positive]
    negatives = [score for score, positive in tokens if not positive]
    area = auroc(np.array([s for s, _ in tokens]), np.array([p for _, p in tokens], dtype=bool))
    if not positives or not negatives:
        assert math.isnan(area)
    else:
        pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
        assert area == sum(pairs) / len(pairs)


def test_auroc_errors():
    with pytest.raises(NonFiniteError, match="1 of 3 scores are NaN, first at 1"):
        auroc(np.array([1.0, math.nan, 0.0]), np.array([True, False, True]))
    with pytest.raises(ValueError, match="equally long"):
        auroc(np.zeros(2), np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="must be bool, got int64"):
        auroc(np.zeros(2), np.array([0, 1]))


def test_label_noise_by_hand():
    """Ten response tokens, four of them noise; six kept, one of them noise, so one clean token is dropped."""
    noise = label_noise(
        is_kept=bools("00011111", "10000"),
        is_response=bools("00111111", "11110"),
        is_noise=bools("11100001", "01101"),
    )
    assert noise == LabelNoise(
        eta_full=0.4, eta_cleaned=(1 + 1) / 10, kept_share=0.6, kept_noise_share=1 / 6, recall_noise=3 / 4
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1))
def test_label_noise_counts_wrong_labels(tokens):
    tokens = [(kept and response, response, noise) for kept, response, noise in tokens]
    columns = [Ragged.from_rows([[token[i] for token in tokens]], dtype=bool) for i in range(3)]
    found = label_noise(*columns)
    labels = [(kept, not noise) for kept, response, noise in tokens if response]
    if not labels:
        assert math.isnan(found.eta_cleaned)
    else:
        assert found.eta_cleaned == sum(cleaned != truth for cleaned, truth in labels) / len(labels)


def test_keeping_everything_leaves_the_noise_of_full_tokens():
    is_response = bools("0111", "11")
    found = label_noise(is_response, is_response, bools("1010", "00"))
    assert found == LabelNoise(eta_full=0.2, eta_cleaned=0.2, kept_share=1.0, kept_noise_share=0.2, recall_noise=0.0)


@pytest.mark.parametrize(
    ("is_kept", "is_response", "is_noise", "expected"),
    [
        ("00", "11", "10", LabelNoise(0.5, 0.5, 0.0, math.nan, 1.0)),
        ("10", "11", "00", LabelNoise(0.0, 0.5, 0.5, 0.0, math.nan)),
        ("00", "00", "11", LabelNoise(math.nan, math.nan, math.nan, math.nan, math.nan)),
    ],
    ids=["nothing kept", "no noise", "no response"],
)
def test_a_share_of_nothing_is_nan(is_kept, is_response, is_noise, expected):
    found = label_noise(bools(is_kept), bools(is_response), bools(is_noise))
    assert astuple(found) == pytest.approx(astuple(expected), nan_ok=True)


def test_label_columns_must_fit():
    with pytest.raises(ValueError, match="1 kept tokens are outside the response"):
        label_noise(bools("11"), bools("01"), bools("00"))
    with pytest.raises(ValueError, match="differ in row 0"):
        label_noise(bools("01"), bools("01"), bools("0"))
    with pytest.raises(ValueError, match="differ in row 0"):
        label_noise(bools("01"), bools("011"), bools("00"))
    with pytest.raises(ValueError, match="bool columns, got float64"):
        jaccard(Ragged.from_rows([[0.0]]), bools("0"))
    with pytest.raises(ValueError, match="1 and 2 rows"):
        jaccard(bools("0"), bools("0", "0"))


def test_average_precision_by_hand():
    is_positive = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), is_positive) == (1 + 2 / 3) / 2
    assert average_precision(np.array([4.0, 1.0, 3.0, 2.0]), is_positive) == 1.0
    assert average_precision(np.zeros(4), is_positive) == 0.5  # equal scores count together
    assert average_precision(np.array([math.inf, 1.0, 1.0, -math.inf]), is_positive) == (1 + 2 / 3) / 2
    assert math.isnan(average_precision(np.zeros(2), np.zeros(2, dtype=bool)))


@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]), st.booleans()), max_size=30))
def test_average_precision_is_the_mean_precision_at_each_positive(tokens):
    scores, positive = np.array([s for s, _ in tokens]), np.array([p for _, p in tokens], dtype=bool)
    found = average_precision(scores, positive)
    at_each = [positive[scores >= score].mean() for score, is_positive in tokens if is_positive]
    assert math.isnan(found) if not at_each else found == pytest.approx(np.mean(at_each))


def test_calibration_error_by_hand():
    probabilities = np.array([0.05, 0.05, 0.15, 0.95, 1.0])
    is_positive = np.array([False, True, False, True, True])
    # Bins: |1/2 - 0.05| of 2 tokens, 0.15 of 1, |1 - 0.975| of 2.
    assert expected_calibration_error(probabilities, is_positive) == pytest.approx((2 * 0.45 + 0.15 + 2 * 0.025) / 5)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    assert math.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 0.5 to 1.5"):
        expected_calibration_error(np.array([0.5, 1.5]), np.array([True, True]))


def test_a_calibrated_probability_has_no_error():
    probabilities = np.repeat([0.125, 0.5, 0.875], 8)
    is_positive = np.concatenate([np.arange(8) < 8 * p for p in (0.125, 0.5, 0.875)])
    assert expected_calibration_error(probabilities, is_positive) == 0.0
