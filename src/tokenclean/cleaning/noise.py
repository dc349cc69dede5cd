"""Noise-mixture cleaning and repetition: alone, or on top of what another strategy keeps.

Noise mixture weighs each token by the posterior that it is no noise; repetition drops the passages that many rows share
word for word. ``cleaning.also`` adds either to every selecting strategy; ``none``, ``random``, full tokens, the control
and the warm-up stay as they are, to be compared with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenclean.cleaning.strategy_result import StrategyResult, weights_of
from tokenclean.cleaning.workshop import NOISE_RATES, Model, Workshop
from tokenclean.ragged import Ragged
from tokenclean.selection import NoiseRates
from tokenclean.training.step_plan import SchedulePart


@dataclass(frozen=True)
class Trained:
    """A model, and what it was trained on; columns are aligned with the pool's tokens.

    ``kept``: bool, without the tokens of repeated passages. ``weights``: float32, 0.0 where not kept; a mixture fitted
    offline makes them fractions. ``row_rates``: float64 (N,), the noise rate that a mixture found of each row trained
    on, NaN for others; None without a mixture.
    """

    model: Model
    kept: Ragged
    weights: Ragged
    row_rates: np.ndarray | None = None


def noise_mixture(workshop: Workshop) -> StrategyResult:
    """Every response token, weighed by the posterior that it is no noise (``cleaning.noise_mixture``).

    ``noise_mixture.with_repetition`` drops repeated passages too, in this strategy alone.
    """
    with_repetition = workshop.recipe.cleaning.noise_mixture.with_repetition
    return _alone(workshop, "noise_mixture", *(("repetition",) if with_repetition else ()))


def repetition(workshop: Workshop) -> StrategyResult:
    """Every response token but those of passages that many rows share (``cleaning.repetition``)."""
    return _alone(workshop, "repetition")


def _alone(workshop: Workshop, name: str, *further: str) -> StrategyResult:
    methods = {name, *further, *workshop.recipe.cleaning.also}
    trained = train_without_noise(workshop, name, workshop.base, workshop.tokens.is_response, methods=methods)
    return outcome_of(workshop, name, trained)


def outcome_of(workshop: Workshop, strategy: str, trained: Trained, **found: Any) -> StrategyResult:
    """The outcome of a strategy with one training. ``found``: further fields of ``StrategyResult``."""
    return StrategyResult(
        strategy,
        trained.model,
        trained.kept,
        rounds=(trained.model,),
        weights=fractions_of(trained.weights),
        noise=noise_found(workshop, trained.kept, trained.row_rates),
        **found,
    )


def train_without_noise(
    workshop: Workshop,
    name: str,
    start: Model,
    kept: Ragged,
    rows: np.ndarray | None = None,
    methods: Collection[str] | None = None,
    part: SchedulePart | None = None,
) -> Trained:
    """Train ``start`` on what is kept of ``rows`` (all by default), cleaned further by ``methods``.

    ``kept``: bool, aligned with the pool's tokens. ``methods``: of ``noise_mixture`` and ``repetition``, by default
    those of ``cleaning.also``. Online the mixture weighs tokens in the training itself, by the model's own losses;
    offline by the losses of ``model.reference``, else of the base. ``part``: as of ``Workshop.train``.
    """
    methods = workshop.recipe.cleaning.also if methods is None else methods
    chosen = np.arange(len(workshop.tokens)) if rows is None else rows
    if "repetition" in methods:
        kept = kept.with_values(kept.values & ~workshop.noise.repetition.is_repeated.values)
    weights, row_rates, mixture = weights_of(kept), None, None
    if "noise_mixture" in methods:
        row_rates = np.full(len(workshop.tokens), np.nan)
        if workshop.recipe.cleaning.noise_mixture.mode == "online":
            mixture = workshop.noise.mixture
        else:
            estimate = workshop.noise.estimate
            weights = weights.with_values(weights.values * estimate.weights.values)
            row_rates[chosen] = estimate.row_rates[chosen]
    model = workshop.train(name, start, weights, rows, mixture, part)
    if mixture is not None and row_rates is not None:
        found = json.loads((model.folder / NOISE_RATES).read_text(encoding="utf-8"))
        row_rates[chosen] = [np.nan if rate is None else rate for rate in found]
    return Trained(model, kept, weights, row_rates)


def fractions_of(weights: Ragged) -> Ragged | None:
    """The weights, if any is neither 0 nor 1."""
    return weights if np.any((weights.values != 0) & (weights.values != 1)) else None


def noise_found(workshop: Workshop, kept: Ragged, row_rates: np.ndarray | None) -> NoiseRates | None:
    """The rows' rates with those of the pool and its sources, in which each row counts by its kept tokens."""
    if row_rates is None:
        return None
    tokens = np.where(np.isnan(row_rates), 0, kept.row_sums())
    noise = np.where(np.isnan(row_rates), 0.0, row_rates) * tokens
    names = np.array(workshop.tokens.sources)

    def share(is_counted: np.ndarray) -> float:
        total = tokens[is_counted].sum()
        return float(noise[is_counted].sum() / total) if total else math.nan

    sources = {name: share(names == name) for name in dict.fromkeys(workshop.tokens.sources)}
    return NoiseRates(share(np.ones(len(tokens), dtype=bool)), sources, row_rates)
