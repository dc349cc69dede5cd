"""Which labels are wrong, and what they should have been, by the votes of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenclean.ds2.neighbours import Neighbours, draw_samples
from tokenclean.ds2.transition_matrix import Transition

EPOCHS, NEIGHBOURS = 51, 10
NOISE_RATES = (0.05, 0.95)
"""Bounds of a class's noise rate: no class is taken to be entirely clean or entirely wrong."""
_SMALLEST_VOTE = 1e-12


@dataclass(frozen=True)
class Detection:
    """``times_sampled`` and ``flags`` (how often it was taken for wrong) of each point, int64 (N,); ``votes``: how
    often it was flagged with each class as its neighbours' choice, int64 (N, K)."""

    times_sampled: np.ndarray
    flags: np.ndarray
    votes: np.ndarray


@dataclass(frozen=True)
class Curation:
    """``labels``: curated, int64 (N,); ``suggested``: the best other label of every point, int64 (N,); ``is_error``:
    taken for wrong, bool (N,); ``noisy``: in which share of its samples, float64 (N,); ``confidence`` in the
    suggestion, float64 (N,)."""

    labels: np.ndarray
    suggested: np.ndarray
    is_error: np.ndarray
    noisy: np.ndarray
    confidence: np.ndarray


def neighbour_votes(
    labels_N: np.ndarray, nearest: Neighbours, classes: int, is_there: np.ndarray | None = None
) -> np.ndarray:
    """Soft votes q (n, K) of the neighbours of n points: Σ (1 − d) · 1[label = c], each row of length 1.

    A neighbour at more than a right angle (d > 1) has no vote. ``is_there``: bool (n, k), neighbours that count.
    A row without any vote is the same for all classes.
    """
    weights = np.clip(1 - nearest.distances.astype(np.float64), 0, None)
    if is_there is not None:
        weights = weights * is_there
    votes = np.zeros((len(weights), classes))
    np.add.at(votes, (np.arange(len(weights))[:, None], labels_N[nearest.indices]), weights)
    lengths = np.linalg.norm(votes, axis=1, keepdims=True)
    return np.where(lengths > 0, votes / np.where(lengths > 0, lengths, 1), classes**-0.5)


def detect_errors(
    labels_N: np.ndarray,
    neighbours: Neighbours,
    transition: Transition,
    *,
    epochs: int = EPOCHS,
    count: int = NEIGHBOURS,
    seed: int = 0,
) -> Detection:
    """Flag, in every epoch, the points of a sample whose label their neighbours in it support least.

    The doubt about a point is s = −log q[own label]. Among the points labelled j, those are flagged whose s is at or
    above the 100·(1 − r_j)-th percentile; r_j is the class's noise rate by the transition matrix, within NOISE_RATES.
    """
    classes = len(transition.prior)
    rates = np.clip(transition.class_noise_rates, *NOISE_RATES)
    sampled, flags = np.zeros(len(labels_N), dtype=np.int64), np.zeros(len(labels_N), dtype=np.int64)
    votes = np.zeros((len(labels_N), classes), dtype=np.int64)
    for is_sampled in draw_samples(len(labels_N), epochs, seed):
        points, nearest, is_there = neighbours.among(is_sampled, count)
        soft, own = neighbour_votes(labels_N, nearest, classes, is_there), labels_N[points]
        doubt = -np.log(np.maximum(soft[np.arange(len(points)), own], _SMALLEST_VOTE))
        is_flagged = np.zeros(len(points), dtype=bool)
        for label in np.unique(own):
            of_label = np.flatnonzero(own == label)
            is_flagged[of_label] = doubt[of_label] >= np.percentile(doubt[of_label], 100 * (1 - rates[label]))
        sampled[points] += 1
        flagged = points[is_flagged]
        flags[flagged] += 1
        votes[flagged, soft[is_flagged].argmax(axis=1)] += 1
    return Detection(sampled, flags, votes)


def correct_labels(labels_N: np.ndarray, detection: Detection, *, minimum_confidence: float) -> Curation:
    """Replace the labels that are wrong where the confidence suffices.

    noisy = (flags + 1) / (times sampled + 2), an error above one half. The share of another label c is
    m[c] = (votes_c + 1) / (Σ votes + K); the largest is suggested, with confidence max m · noisy.
    """
    labels = np.asarray(labels_N, dtype=np.int64)
    classes = detection.votes.shape[1]
    noisy = (detection.flags + 1) / (detection.times_sampled + 2)
    shares = (detection.votes + 1) / (detection.votes.sum(axis=1, keepdims=True) + classes)
    shares[np.arange(len(labels)), labels] = -1.0
    suggested = shares.argmax(axis=1)
    confidence = shares[np.arange(len(labels)), suggested] * noisy
    is_error = noisy > 0.5
    is_replaced = is_error & (confidence >= minimum_confidence)
    return Curation(np.where(is_replaced, suggested, labels), suggested, is_error, noisy, confidence)
