"""What the trials of ``auto`` may cost: how many tokens each may be trained on, and which rows those are.

Costs are in tokens trained for one epoch, forward and backward; a pass, which only goes forward, counts a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenclean.pool.splits import heldout_rows

BUDGET = 2.5
"""The whole of a run that chooses, over one training on full tokens."""

PASS_COST = 1 / 3
"""Cost of a token in a pass: the backward pass costs twice as much as the forward one."""


@dataclass(frozen=True)
class RunSize:
    """Tokens of a run's rows, prompts included. ``training``: all training rows; ``choosing``: the rows to choose by;
    ``noise``: those scored to estimate the noise.

    Of references, all 0 without one: ``warmup``: the rows that warm up the final one, ``trial_warmup``: that of the
    trial; ``ranked``: the rows that they score, beside the base; ``heldout``, ``sample``: those of their checks, each
    as often as there are checks.
    """

    training: int
    epochs: int
    choosing: int
    noise: int = 0
    heldout: int = 0
    warmup: int = 0
    trial_warmup: int = 0
    ranked: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Cost:
    """Of a whole run with trials: ``fixed``, and ``per_token`` of the rows on which the trials are done."""

    fixed: float
    per_token: float

    def total(self, trial_tokens: int) -> float:
        """With trials on rows of so many tokens."""
        return self.fixed + self.per_token * trial_tokens


def run_cost(size: RunSize, trials: int) -> Cost:
    """The most that a run with so many trials costs: the pass that estimates the noise, the trials and their passes
    over the rows to choose by, and the final training, with a reference where there is one to try."""
    fixed = size.training * size.epochs + (size.noise + trials * size.choosing) * PASS_COST
    per_token = float(trials * size.epochs)
    if size.ranked:
        fixed += (size.warmup + size.trial_warmup) * size.epochs
        fixed += (2 * size.ranked + size.heldout + 2 * size.sample) * PASS_COST
        per_token += 2 * PASS_COST
    return Cost(fixed, per_token)


def trial_tokens(size: RunSize, trials: int) -> int:
    """The most tokens that the rows of the trials may have; 0 where nothing is left for them."""
    cost = run_cost(size, trials)
    return max(0, int((BUDGET * size.training * size.epochs - cost.fixed) / cost.per_token))


def draw_rows(rows: np.ndarray, lengths: np.ndarray, sources: Sequence[str], most_tokens: int, seed: int) -> np.ndarray:
    """As many of ``rows`` as have at most ``most_tokens`` together, drawn at random, each source by its share.

    ``rows``: row numbers, int64 (N,); ``lengths``: tokens of all rows; ``sources``: of all rows. Returns row numbers,
    ascending; none where not even one fits.
    """
    total = int(lengths[rows].sum())
    if total <= most_tokens:
        return rows
    of_rows = np.array(sources)[rows].tolist()
    count = int(len(rows) * most_tokens / total)
    while count:
        drawn = rows[heldout_rows(of_rows, count, seed)]
        if (tokens := int(lengths[drawn].sum())) <= most_tokens:
            return drawn
        count = min(count - 1, int(count * most_tokens / tokens))
    return rows[:0]
