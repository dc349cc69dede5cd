"""Which trial wins: the rule of ``auto``, and a record of what it decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.scoring import paired_difference

FULL_TOKENS = "full_tokens"

ERROR_RATE = 0.05
"""Chance of taking anything where nothing differs from full tokens, at most."""


@dataclass(frozen=True)
class Trial:
    """A candidate against full tokens, both trained on the same rows: ``difference`` of the loss on the rows to choose
    by, in nats a token, and its interval; all NaN where one of the two has no finite loss there."""

    name: str
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0

    def __str__(self) -> str:
        if math.isnan(self.difference):
            return f"{self.name}: no finite loss"
        return f"{self.name}: {self.difference:+.4f} nats, {self.low:+.4f} to {self.high:+.4f}"


@dataclass(frozen=True)
class Choice:
    """What a run chose for its user. ``reason``: in words, without a full stop. ``trials``: of the candidates beside
    full tokens, in the order of their names' registration; ``level``: confidence of their intervals.

    ``trial_rows`` of ``training_rows`` were trained on in each trial; ``choosing_rows``: conversations that decided,
    ``chosen_by``: which they are. ``noise``: estimated share of the pool's response tokens; None where that was not
    estimated. ``cost``: the most that the whole run costs, over one training on full tokens. ``proportion``: share of
    tokens to keep, where that was chosen.
    """

    chosen: str
    reason: str
    trials: tuple[Trial, ...] = ()
    level: float | None = None
    trial_rows: int = 0
    training_rows: int = 0
    choosing_rows: int = 0
    chosen_by: str = ""
    noise: float | None = None
    cost: float | None = None
    proportion: float | None = None

    @property
    def sentence(self) -> str:
        """What was chosen and why, with a full stop."""
        return f"auto chose {'full tokens' if self.chosen == FULL_TOKENS else self.chosen}: {self.reason}."

    def to_json(self) -> dict[str, Any]:
        """As in ``result.json``; a trial without finite losses has None there."""
        trials = [_without_nan(asdict(trial)) for trial in self.trials]
        return {**asdict(self), "trials": trials, "sentence": self.sentence}


def compare_trials(losses: Mapping[str, Ragged], is_response: Ragged) -> tuple[list[Trial], float]:
    """Every candidate against ``full_tokens``, and the confidence of their intervals.

    ``losses``: of the models of all trials on the rows to choose by, float32 nats; ``is_response``: of these rows.
    With m candidates beside full tokens the intervals are of confidence 1 − 0.05/m each (Bonferroni), so that all of
    them hold together in 95 % of cases. A model without a finite loss at every response token cannot be compared.
    """
    full = losses[FULL_TOKENS]
    names = [name for name in losses if name != FULL_TOKENS]
    level = 1 - ERROR_RATE / max(len(names), 1)
    return [_compare(name, losses[name], full, is_response, level) for name in names], level


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Of the trials that are clearly better than full tokens the one with the lowest loss, the first of equals; None
    where there is none."""
    return min((trial for trial in trials if trial.is_clear), key=lambda trial: trial.difference, default=None)


def _compare(name: str, losses: Ragged, full: Ragged, is_response: Ragged, level: float) -> Trial:
    if not all(np.isfinite(column.values[is_response.values]).all() for column in (losses, full)):
        return Trial(name, math.nan, math.nan, math.nan)
    found = paired_difference(losses, full, level)
    return Trial(name, found.difference, found.low, found.high)


def _without_nan(values: Mapping[str, object]) -> dict[str, object]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
