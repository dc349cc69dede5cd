"""Detectors on hand-made columns, and how well they find noise, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokenclean.errors import NonFiniteError
from tokenclean.lab import DETECTORS
from tokenclean.lab.detection_quality import Separation, TruthLabels, measure_detection
from tokenclean.lab.detectors import Columns, Detection
from tokenclean.ragged import Ragged
from tokenclean.recipe import STRATEGIES
from tokenclean.recipe.settings import CleaningSettings, RepetitionSettings
from tokenclean.selection import surprisal_table, token_posterior

NAN = math.nan
IDS = Ragged.from_rows([[9, 1, 2, 3, 4], [9, 1, 2, 3], [9, 1, 2, 3, 5, 6]])
LABELS = IDS.map_values(lambda ids: ids != 9)
LOSSES = Ragged.from_rows([[NAN, 1, 5, 2, 1], [NAN, 3, 3, 1], [NAN, 0, 9, 1, 1, 2]], np.float32)
REFERENCE = Ragged.from_rows([[NAN, 0, 5, 2, 2], [NAN, 1, 3, 3], [NAN, 1, 8, 1, 1, 2]], np.float32)
SETTINGS = CleaningSettings(proportion=0.75, repetition=RepetitionSettings(n=3))


def columns(score: Ragged | None = None) -> Columns:
    return Columns(IDS, LABELS, LOSSES, score, ("s", "s", "s"), SETTINGS, 10)


def found(name: str, score: Ragged | None = None) -> Detection:
    detection = DETECTORS[name](columns(score))
    assert detection is not None
    return detection


def on_response(column: Ragged) -> list[list[float]]:
    return [values[labels].tolist() for values, labels in zip(column, LABELS, strict=True)]


def test_loss_and_loss_minus_surprisal():
    assert on_response(found("base_loss").scores) == [[1, 5, 2, 1], [3, 3, 1], [0, 9, 1, 1, 2]]
    table = surprisal_table(IDS, LABELS, 10)
    expected = LOSSES.values - table[IDS.values]
    got = found("loss_minus_surprisal").scores.values
    np.testing.assert_array_equal(got[LABELS.values], expected[LABELS.values])


def test_rank_in_row_counts_equal_losses_and_flags_the_highest():
    detection = found("loss_rank_in_row")
    assert on_response(detection.scores) == [[0.5, 1, 0.75, 0.5], [1, 1, 1 / 3], [0.2, 1, 0.6, 0.6, 0.8]]
    assert detection.flagged is not None
    assert [sum(row) for row in on_response(detection.flagged)] == [1, 1, 2]  # a quarter, rounded up
    assert detection.flagged[2].tolist() == [False, False, True, False, False, True]


def test_noise_mixture_is_the_posterior_of_noise():
    detection = found("noise_mixture")
    table = surprisal_table(IDS, LABELS, 10)
    weights = token_posterior(LOSSES, IDS.map_values(lambda ids: table[ids]), LABELS).weights
    noise = 1 - weights.values[LABELS.values].astype(np.float64)
    np.testing.assert_array_equal(detection.scores.values[LABELS.values], noise)
    assert detection.estimated_rate == pytest.approx(noise.mean())
    assert detection.flagged is not None
    np.testing.assert_array_equal(detection.flagged.values[LABELS.values], noise > 0.5)
    assert detection.is_probability


def test_repetition_flags_shared_passages():
    detection = found("repetition")
    assert on_response(detection.scores) == [[1, 1, 1, 0], [1, 1, 1], [1, 1, 1, 0, 0]]
    assert detection.estimated_rate == 9 / 12


def test_strategies_flag_what_they_drop():
    score = LOSSES - REFERENCE
    for name, flagged in {"fixed_model": 3, "rho": 4}.items():
        detection = found(name, score)
        assert on_response(detection.scores) == [[-v for v in row] for row in on_response(score)]
        assert detection.flagged is not None
        assert detection.flagged.values.sum() == flagged
        assert name in STRATEGIES
    assert DETECTORS["rho"](columns()) is None
    assert DETECTORS["fixed_model"](columns()) is None
    dropped = found("fixed_model", score).flagged
    assert dropped is not None
    kept_scores = score.values[LABELS.values & ~dropped.values]
    assert score.values[dropped.values].max() <= kept_scores.min()


def labels_of(*rows: str) -> TruthLabels:
    """Of each response token: ``o`` onset, ``n`` later noise, ``.`` clean."""
    text = [f"-{row}" for row in rows]

    def column(wanted: str) -> Ragged:
        return Ragged.from_rows([[mark in wanted for mark in row] for row in text], np.bool_)

    return TruthLabels(column("on."), column("on"), column("o"))


TRUTH = labels_of(".on.", "...", "o....")


def test_quality_by_hand():
    flagged = Ragged.from_rows([[0, 0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0, 0, 0]], np.bool_)
    quality = measure_detection(Detection(LOSSES, flagged, 0.25), TRUTH)
    # Onsets have losses 5 and 0, the later token 2; clean ones 1 1 / 3 3 1 / 9 1 1 2.
    assert quality.onset == Separation((8 + 0) / 18, (1 / 2 + 2 / 11) / 2, 2 / 11)
    assert quality.later == Separation((5 + 0.5) / 9, 1 / 5, 1 / 10)
    assert quality.whole.auroc == (8 + 0 + 5.5) / 27
    assert quality.whole.rate == 3 / 12
    assert (quality.flagged_share, quality.precision, quality.recall) == (3 / 12, 2 / 3, 2 / 3)
    assert (quality.estimated_rate, quality.calibration_error) == (0.25, None)
    assert TRUTH.rate == 0.25


def test_without_a_line_of_its_own_and_without_noise():
    quality = measure_detection(Detection(LOSSES), labels_of("....", "...", "....."))
    assert math.isnan(quality.onset.auroc)
    assert math.isnan(quality.whole.average_precision)
    assert (quality.flagged_share, quality.precision, quality.recall) == (None, None, None)


def test_nothing_flagged_has_no_precision():
    quality = measure_detection(Detection(LOSSES, LABELS.map_values(np.zeros_like)), TRUTH)
    assert quality.precision is not None
    assert math.isnan(quality.precision)
    assert quality.recall == 0.0


def test_probabilities_have_a_calibration_error():
    probabilities = TRUTH.is_noise.map_values(lambda noise: np.where(noise, 0.95, 0.05))
    quality = measure_detection(Detection(probabilities, is_probability=True), TRUTH)
    assert quality.calibration_error == pytest.approx(0.05)


def test_faults():
    with pytest.raises(NonFiniteError, match="scores are NaN"):
        measure_detection(Detection(LOSSES.map_values(lambda v: np.where(v == 9, NAN, v))), TRUTH)
    with pytest.raises(ValueError, match="row"):
        measure_detection(Detection(LOSSES.take([0, 1])), TRUTH)
