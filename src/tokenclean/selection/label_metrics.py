"""How well token labels agree: with each other, with scores, and with known noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenclean.errors import NonFiniteError
from tokenclean.ragged import Ragged


@dataclass(frozen=True)
class LabelNoise:
    """Noise of token labels before and after cleaning, in the terms of section 5.1; all shares lie in [0, 1].

    A share of nothing is NaN: all five without a response token, ``kept_noise_share`` where nothing is kept,
    ``recall_noise`` without any noise.
    """

    eta_full: float
    """η(D̃) = P(Ỹ ≠ Y): share of the response tokens that are noise."""
    eta_cleaned: float
    """η̂ = P(Ŷ ≠ Y): share of the response tokens whose cleaned label is wrong (kept noise, dropped clean tokens)."""
    kept_share: float
    """r̂ = P(Ŷ = 1): share of the response tokens that are kept."""
    kept_noise_share: float
    """Share of noise among the kept tokens, 1 - precision."""
    recall_noise: float
    """Share of the noise that was dropped."""


def label_noise(is_kept: Ragged, is_response: Ragged, is_noise: Ragged) -> LabelNoise:
    """Compare cleaned labels with the truth on the response tokens (section 5.1).

    All three are aligned bool columns: ``is_kept`` ŷ, ``is_response`` ỹ, ``is_noise`` True where a response token is no
    valid target (y = 0). ``is_noise`` outside the response is ignored. Raises ValueError for columns that are not
    bool or not aligned, and for a kept token outside the response.
    """
    kept, response, noise = _aligned_bools(is_kept, is_response, is_noise)
    if outside := _count(kept & ~response):
        raise ValueError(f"{outside} kept tokens are outside the response")
    noise = noise & response
    response_tokens, kept_tokens, noise_tokens = map(_count, (response, kept, noise))
    kept_noise_tokens = _count(kept & noise)
    dropped_clean_tokens = response_tokens - kept_tokens - (noise_tokens - kept_noise_tokens)
    return LabelNoise(
        eta_full=_share(noise_tokens, response_tokens),
        eta_cleaned=_share(kept_noise_tokens + dropped_clean_tokens, response_tokens),
        kept_share=_share(kept_tokens, response_tokens),
        kept_noise_share=_share(kept_noise_tokens, kept_tokens),
        recall_noise=_share(noise_tokens - kept_noise_tokens, noise_tokens),
    )


def jaccard(a: Ragged, b: Ragged) -> float:
    """|a ∩ b| / |a ∪ b| of two kept sets, in [0, 1]; 1.0 when both are empty.

    Raises ValueError for columns that are not bool or not aligned.
    """
    a_T, b_T = _aligned_bools(a, b)
    union = _count(a_T | b_T)
    return _count(a_T & b_T) / union if union else 1.0


def auroc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Probability that a positive's score exceeds a negative's, ties counted half (the area under the ROC curve).

    ``scores``: shape (T,), inf allowed; ``is_positive``: bool, shape (T,). NaN when either class is missing. Raises
    ValueError for other shapes or dtypes, NonFiniteError for a NaN score.
    """
    scores, is_positive = _checked(scores, is_positive)
    positives, negatives = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    if len(positives) == 0 or len(negatives) == 0:
        return math.nan
    below = np.searchsorted(negatives, positives, side="left").sum()
    not_above = np.searchsorted(negatives, positives, side="right").sum()
    return int(below + not_above) / (2 * len(positives) * len(negatives))


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Mean over the positives of the precision at their score: Σ (R_k − R_{k−1}) P_k over the distinct scores, falling.

    P_k and R_k are precision and recall of everything that scores at least as high, so that equal scores count together
    and the order of tokens does not matter. Arguments and errors as for ``auroc``; NaN without a positive.
    """
    scores, is_positive = _checked(scores, is_positive)
    total = int(np.count_nonzero(is_positive))
    if total == 0:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], np.cumsum(is_positive[order])
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)  # of each group of equal scores
    hits, taken = hits[last], np.flatnonzero(last) + 1
    return float(np.sum(np.diff(hits, prepend=0) * hits / taken) / total)


def expected_calibration_error(probabilities: np.ndarray, is_positive: np.ndarray, bins: int = 10) -> float:
    """Mean over all tokens of |share of positives − mean probability| in the token's bin of probabilities.

    ``probabilities``: shape (T,), in [0, 1], sorted into ``bins`` bins of equal width; 1.0 belongs to the last. NaN
    without a token. Raises as ``auroc``, and ValueError for a probability outside [0, 1].
    """
    probabilities, is_positive = _checked(probabilities, is_positive)
    if len(probabilities) == 0:
        return math.nan
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(f"probabilities must lie in [0, 1], got {probabilities.min()} to {probabilities.max()}")
    of_bin = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(of_bin, weights=is_positive - probabilities.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def _checked(scores: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays; ValueError or NonFiniteError as ``auroc`` says."""
    scores, is_positive = np.asarray(scores), np.asarray(is_positive)
    if scores.ndim != 1 or scores.shape != is_positive.shape:
        raise ValueError(
            f"scores and is_positive must be 1-D and equally long, got {scores.shape}, {is_positive.shape}"
        )
    if is_positive.dtype != np.bool_:
        raise ValueError(f"is_positive must be bool, got {is_positive.dtype}")
    nans = np.flatnonzero(np.isnan(scores))
    if len(nans):
        raise NonFiniteError(f"{len(nans)} of {len(scores)} scores are NaN, first at {nans[0]}")
    return scores, is_positive


def _aligned_bools(*columns: Ragged) -> list[np.ndarray]:
    """The values of aligned bool columns; ValueError where they are not."""
    for column in columns:
        if column.values.dtype != np.bool_:
            raise ValueError(f"token labels must be bool columns, got {column.values.dtype}")
        columns[0].check_aligned(column)
    return [column.values for column in columns]


def _count(is_true: np.ndarray) -> int:
    return int(np.count_nonzero(is_true))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
