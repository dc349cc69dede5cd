"""How well a detector finds noise that is known: at the first token of a span, and over the whole span."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenclean.lab.detectors import Detection
from tokenclean.ragged import Ragged
from tokenclean.selection import auroc, average_precision, expected_calibration_error


@dataclass(frozen=True)
class TruthLabels:
    """Bool columns over the same rows: ``is_response``, ``is_noise`` (response tokens that touch a span of noise) and
    ``is_onset`` (of each span the first of them)."""

    is_response: Ragged
    is_noise: Ragged
    is_onset: Ragged

    @property
    def rate(self) -> float:
        """Share of the response tokens that are noise; NaN without a response token."""
        response = int(self.is_response.values.sum())
        return int(self.is_noise.values.sum()) / response if response else math.nan


@dataclass(frozen=True)
class Separation:
    """How well scores separate some tokens of noise from all clean tokens. ``auroc`` and ``average_precision``: NaN
    where one of both is missing; ``rate``: the average precision of a score that says nothing."""

    auroc: float
    average_precision: float
    rate: float


@dataclass(frozen=True)
class DetectionQuality:
    """``onset``: for the first tokens of spans, ``later``: for the others, ``whole``: for all tokens of noise.

    At the detector's own line: ``flagged_share`` of the response tokens, ``precision`` (NaN where it flags nothing) and
    ``recall``; all None where it draws none. ``estimated_rate``: its estimate of the share of noise, or None.
    ``calibration_error``: expected calibration error in ten bins, None where its scores are no probabilities.
    """

    onset: Separation
    later: Separation
    whole: Separation
    flagged_share: float | None
    precision: float | None
    recall: float | None
    estimated_rate: float | None
    calibration_error: float | None


def measure_detection(detection: Detection, truth: TruthLabels) -> DetectionQuality:
    """The quality of a detection. Raises ValueError for columns that are not aligned, NonFiniteError for a NaN score on
    a response token."""
    truth.is_response.check_aligned(detection.scores)
    response = truth.is_response.values
    scores, noise, onset = (column.values[response] for column in (detection.scores, truth.is_noise, truth.is_onset))
    share, precision, recall = None, None, None
    if detection.flagged is not None:
        truth.is_response.check_aligned(detection.flagged)
        flagged = detection.flagged.values[response]
        hits = int(np.count_nonzero(flagged & noise))
        share = _share(int(flagged.sum()), len(noise))
        precision, recall = _share(hits, int(flagged.sum())), _share(hits, int(noise.sum()))
    return DetectionQuality(
        onset=_separate(scores, onset, noise),
        later=_separate(scores, noise & ~onset, noise),
        whole=_separate(scores, noise, noise),
        flagged_share=share,
        precision=precision,
        recall=recall,
        estimated_rate=detection.estimated_rate,
        calibration_error=expected_calibration_error(scores, noise) if detection.is_probability else None,
    )


def _separate(scores: np.ndarray, wanted: np.ndarray, noise: np.ndarray) -> Separation:
    """Of ``wanted`` tokens of noise from the clean ones; other noise counts as neither."""
    counted = wanted | ~noise
    scores, wanted = scores[counted], wanted[counted]
    rate = _share(int(wanted.sum()), len(wanted))
    return Separation(auroc(scores, wanted), average_precision(scores, wanted), rate)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
