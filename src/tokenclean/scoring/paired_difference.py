"""Paired held-out loss: is one model better than another, and is the difference real?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenclean.ragged import Ragged


@dataclass(frozen=True)
class PairedDifference:
    """Mean loss of a model against another on the same held-out response tokens.

    ``loss``, ``baseline_loss``: nats a token. ``difference`` = loss − baseline_loss, with its interval [``low``,
    ``high``], of 95 % unless another was asked for; below 0 the model is better. ``rows``/``tokens``: how many
    conversations and response tokens were compared.
    """

    loss: float
    baseline_loss: float
    difference: float
    low: float
    high: float
    rows: int
    tokens: int

    @property
    def is_better(self) -> bool:
        """True when the whole interval lies below 0."""
        return self.high < 0

    @property
    def is_worse(self) -> bool:
        """True when the whole interval lies above 0."""
        return self.low > 0


def mean_loss(losses: Ragged) -> float:
    """Mean over all response tokens (those with a loss), nats. Raises ValueError where there is none."""
    values = losses.values[~np.isnan(losses.values)]
    if not len(values):
        raise ValueError("no token has a loss, so there is no mean")
    return float(values.mean(dtype=np.float64))


def paired_difference(losses: Ragged, baseline: Ragged, level: float = 0.95) -> PairedDifference:
    """Token-mean difference with an interval, of confidence ``level``, whose independent units are conversations.

    The difference is a ratio D = Σ d_i / Σ n_i over conversations (d_i: summed difference, n_i: response tokens).
    Its standard error is the linearised one, sqrt(N/(N−1) Σ (d_i − D n_i)²) / Σ n_i, with a t quantile of N−1
    degrees of freedom. Raises ValueError for misaligned columns or fewer than 2 conversations with a response.
    """
    from scipy.special import stdtrit

    losses.check_aligned(baseline)
    present = np.isfinite(baseline.values)
    if not np.array_equal(present, np.isfinite(losses.values)):
        raise ValueError("the two columns have losses at different tokens")
    difference = np.where(present, losses.values.astype(np.float64) - baseline.values, 0.0)
    counts = losses.with_values(present).row_sums()
    sums = losses.with_values(difference).row_sums()[counts > 0]
    counts = counts[counts > 0]
    rows, total = len(counts), counts.sum()
    if rows < 2:
        raise ValueError(f"an interval needs at least 2 held-out conversations, got {rows}")
    mean = sums.sum() / total
    error = math.sqrt(rows / (rows - 1) * float(np.square(sums - mean * counts).sum())) / total
    half = float(stdtrit(rows - 1, (1 + level) / 2)) * error
    return PairedDifference(
        loss=mean_loss(losses),
        baseline_loss=mean_loss(baseline),
        difference=float(mean),
        low=float(mean - half),
        high=float(mean + half),
        rows=rows,
        tokens=int(total),
    )
