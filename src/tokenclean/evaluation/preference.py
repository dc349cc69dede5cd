"""Does a model prefer the clean version of an answer to the noisy one? A measure that noise in training moves even
where the held-out loss does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from tokenclean.evaluation.intervals import Interval, mean_interval
from tokenclean.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Version:
    """One version of N answers: aligned columns, ``input_ids``: int64, ``is_response``: bool, ``losses``: float nats
    under the model, finite on the response."""

    input_ids: Ragged
    is_response: Ragged
    losses: Ragged

    def response(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and losses of the row's response tokens."""
        at = self.is_response[row]
        return self.input_ids[row][at], self.losses[row][at]


@dataclass(frozen=True)
class Preference:
    """Over pairs of a clean and a noisy version that differ.

    ``margin``: mean of log p(clean) − log p(noisy) in nats a differing token, above 0 where the model prefers clean
    answers; ``wins``: share of the pairs in which it does, ties counted half. ``equal``: pairs without a differing
    token, which are left out.
    """

    margin: Interval
    wins: Interval
    equal: int


def pair_margins(clean: Version, noisy: Version) -> np.ndarray:
    """Of each pair, mean log p of the differing tokens of the clean version minus that of the noisy one: nats, float64,
    shape (N,), NaN where no token differs (``differing_tokens``). Raises ValueError for another number of rows."""
    if len(clean.input_ids) != len(noisy.input_ids):
        raise ValueError(f"pairs need as many clean rows as noisy ones: {len(clean.input_ids)}, {len(noisy.input_ids)}")
    margins = np.full(len(clean.input_ids), np.nan)
    for row in range(len(margins)):
        (clean_ids, clean_losses), (noisy_ids, noisy_losses) = clean.response(row), noisy.response(row)
        of_clean, of_noisy = differing_tokens(clean_ids, noisy_ids)
        if of_clean.any() and of_noisy.any():
            margins[row] = noisy_losses[of_noisy].mean(dtype=np.float64) - clean_losses[of_clean].mean(dtype=np.float64)
    return margins


def differing_tokens(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of two sequences differ, bool, of their lengths.

    Where one has tokens and the other nothing, the token that the other has there instead, the next one, counts as
    differing; at its end there is none.
    """
    marks = np.zeros(len(first), dtype=bool), np.zeros(len(second), dtype=bool)
    for operation, *ends in SequenceMatcher(None, first.tolist(), second.tolist(), autojunk=False).get_opcodes():
        if operation != "equal":
            for marked, start, end in zip(marks, ends[::2], ends[1::2], strict=True):
                marked[start : max(end, start + 1)] = True
    return marks


def preference(margins: np.ndarray) -> Preference:
    """The preference over pairs with these ``pair_margins``. Raises ValueError where fewer than two pairs differ."""
    differing = margins[~np.isnan(margins)]
    wins = mean_interval(np.where(differing == 0, 0.5, differing > 0))
    wins = replace(wins, low=max(0.0, wins.low), high=min(1.0, wins.high))  # a share; the interval may reach beyond
    return Preference(mean_interval(differing), wins, len(margins) - len(differing))


def preference_change(margins: np.ndarray, baseline: np.ndarray) -> Interval:
    """Mean change of the margin from one model to another over the same pairs, nats: above 0 the first model prefers
    clean answers more. Raises ValueError where the two differ in which pairs they have."""
    if not np.array_equal(np.isnan(margins), np.isnan(baseline)):
        raise ValueError("the margins of two models have to be of the same pairs")
    return mean_interval((margins - baseline)[~np.isnan(margins)])
