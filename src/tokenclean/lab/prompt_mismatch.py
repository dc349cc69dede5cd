"""Answers that do not belong to their prompt, by prompt permutation.

An answer is likelier under its own prompt than under a foreign one; by how much is T. A mismatched answer's own prompt
is foreign too, so its T is distributed as that of a wrong prompt among other wrong prompts, which can be computed: the
null distribution is known, not assumed. p-values against it are uniform for mismatched answers and near 0 for others.
An answer that hardly depends on its prompt looks mismatched too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.selection.response_tokens import finite_values, on_response, response_indices

FOREIGN_PROMPTS = 4
"""Foreign prompts for each row."""

CLIP_NATS = 3.0
"""The most that one token counts for, either way."""

STOREY_LAMBDA = 0.5
"""p-values above it are taken to be those of mismatched answers alone."""


@dataclass(frozen=True, eq=False)
class MismatchEstimate:
    """``noise``: local FDR of each token's group, the probability that it is mismatched; float64, aligned, 0 for tokens
    of no group and of groups that were not judged. ``share``: estimated share of mismatched groups, in [0, 1]; 0 where
    none was judged. ``judged``: number of groups with losses under foreign prompts."""

    noise: Ragged
    share: float
    judged: int


def find_mismatches(losses: Ragged, foreign: Sequence[Ragged], is_response: Ragged, group: Ragged) -> MismatchEstimate:
    """How likely each group of response tokens, a row's or a sentence's, does not belong to its prompt.

    ``losses``: nats under the row's own prompt; ``foreign``: two or more columns of them, each under another foreign
    prompt, NaN in rows that have no such prompts. ``is_response``: bool. ``group``: int64, the number of the token's
    group, below 0 for none. All aligned. ``group_statistics`` gives T and its null; p-values, the share by Storey with
    λ = 0.5, the local FDR as ``local_fdr`` says.

    Raises ValueError for columns that are not aligned or fewer than two foreign ones, NonFiniteError for an own loss
    that is not finite.
    """
    if len(foreign) < 2:
        raise ValueError(f"the null needs losses under at least two foreign prompts, got {len(foreign)}")
    indices = response_indices(is_response, losses, group, *foreign)
    own = finite_values("loss", losses, indices)
    others = np.array([column.values[indices] for column in foreign])
    noise = np.zeros(len(indices))
    judged = np.isfinite(others).all(axis=0) & (group.values[indices] >= 0)
    _, of_token = np.unique(group.values[indices][judged], return_inverse=True)
    share, groups = 0.0, int(of_token.max(initial=-1)) + 1
    if groups:
        statistics, null = group_statistics(own[judged], others[:, judged], of_token)
        p_values = p_values_of(statistics, null)
        share = storey_share(p_values)
        noise[judged] = local_fdr(p_values, share)[of_token]
    return MismatchEstimate(on_response(is_response, noise), share, groups)


def group_statistics(own: np.ndarray, foreign: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """T of each group, (G,), and what T is for wrong prompts, (K·G,).

    T is the mean over the group's tokens and the K foreign prompts x′ of clip(ℓ(y|x′) − ℓ(y|x), −3, 3) nats. For the
    null each foreign prompt takes the place of the own one, x, among the K − 1 others. ``own``: (R,), ``foreign``:
    (K, R), ``group``: (R,), numbers from 0 without a gap.
    """
    sizes = np.bincount(group)

    def mean_gap(place: np.ndarray, others: np.ndarray) -> np.ndarray:
        gaps = np.clip(others.astype(np.float64) - place, -CLIP_NATS, CLIP_NATS).mean(axis=0)
        return np.bincount(group, weights=gaps) / sizes

    null = [mean_gap(losses, np.delete(foreign, number, axis=0)) for number, losses in enumerate(foreign)]
    return mean_gap(own, foreign), np.concatenate(null)


def p_values_of(statistics: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + values of the null at least as high) / (1 + all of them), of each statistic, in (0, 1]; (G,) and (M,)."""
    at_least = len(null) - np.searchsorted(np.sort(null), statistics, side="left")
    return (1 + at_least) / (1 + len(null))


def storey_share(p_values: np.ndarray) -> float:
    """Estimated share of p-values that are uniform: #{p > λ} / ((1 − λ) n), at most 1 (Storey 2002, λ = 0.5); 0 of
    none."""
    if not len(p_values):
        return 0.0
    above = np.count_nonzero(p_values > STOREY_LAMBDA)
    return min(1.0, float(above / ((1 - STOREY_LAMBDA) * len(p_values))))


def local_fdr(p_values: np.ndarray, share: float) -> np.ndarray:
    """share / f(p), at most 1: the probability that a p-value is one of the uniform ones, rising in p; (G,).

    f is the density of all p-values, by Grenander's estimator (falling, without a bandwidth): the slopes of the least
    concave majorant of their distribution function, which are the isotonic regression of its increments.
    """
    from scipy.optimize import isotonic_regression

    ends, of_value, counts = np.unique(p_values, return_inverse=True, return_counts=True)
    widths = np.diff(ends, prepend=0.0)
    slopes = counts / (len(p_values) * widths)
    if ends[-1] < 1:  # no value lies behind the last
        slopes, widths = np.append(slopes, 0.0), np.append(widths, 1 - ends[-1])
    density = np.asarray(isotonic_regression(slopes, weights=widths, increasing=False).x)
    return np.minimum(1.0, share / density[of_value])
