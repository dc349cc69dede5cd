"""How far people agree who decided the same characters or tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tokenclean.review.placed import PlacedDecisions


@dataclass(frozen=True)
class Agreement:
    """Two people on the positions that both decided: characters, or tokens of rows without text.

    ``share``: of positions that both drop or both train, in [0, 1]; ``kappa``: Cohen's, in [−1, 1]. NaN without a
    common position, kappa also where both gave all positions the same label.
    """

    people: tuple[str, str]
    positions: int
    share: float
    kappa: float

    def __str__(self) -> str:
        both = f"{self.people[0]} and {self.people[1]}"
        if not self.positions:
            return f"{both}: no character that both decided"
        kappa = "not defined, all alike" if math.isnan(self.kappa) else f"{self.kappa:.2f}"
        return f"{both}: agree on {self.share:.1%} of {self.positions:,} characters; Cohen's kappa {kappa}"


def agreements(placed: Mapping[str, PlacedDecisions]) -> list[Agreement]:
    """Each two of the people, by their placed decisions."""
    return [agreement((a, b), placed[a], placed[b]) for a, b in combinations(placed, 2)]


def agreement(people: tuple[str, str], first: PlacedDecisions, second: PlacedDecisions) -> Agreement:
    """Two people's labels, dropped (weight 0) or trained (above 0), where both decided."""
    is_dropped: list[np.ndarray] = [np.empty((2, 0), dtype=bool)]
    for place in first.weights.keys() & second.weights.keys():
        weights = np.stack([first.weights[place], second.weights[place]])
        is_dropped.append(weights[:, ~np.isnan(weights).any(axis=0)] == 0)
    labels = np.concatenate(is_dropped, axis=1)
    share, kappa = cohens_kappa(labels[0], labels[1])
    return Agreement(people, labels.shape[1], share, kappa)


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Observed agreement p_o and Cohen's κ = (p_o − p_e) / (1 − p_e) of two labellings, bool (T,); p_e is the agreement
    by chance. NaN where it is not defined. Raises ValueError for different shapes."""
    if first.shape != second.shape:
        raise ValueError(f"expected two labellings of the same positions, found {first.shape} and {second.shape}")
    if not len(first):
        return math.nan, math.nan
    observed = float(np.mean(first == second))
    p, q = float(np.mean(first)), float(np.mean(second))
    chance = p * q + (1 - p) * (1 - q)
    return observed, (observed - chance) / (1 - chance) if chance < 1 else math.nan
