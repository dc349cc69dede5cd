"""Noise-mixture cleaning and repetition: alone, or on top of what another strategy keeps.

Noise mixture weighs each token by the posterior that it is no noise; repetition drops the passages that many rows share
word for word. ``cleaning.also`` adds either to every selecting strategy; ``none``, ``random``, full tokens, the control
and the warm-up are left unchanged, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.strategy_result import StrategyResult, weights_of
from tokenclean.ragged import Ragged
from tokenclean.selection import NoiseRates
from tokenclean.selection.ranking import Level
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


def noise_mixture(context: RunContext) -> StrategyResult:
    """Every response token, weighed by the posterior that it is no noise (``cleaning.noise_mixture``).

    ``noise_mixture.with_repetition`` drops repeated passages too, in this strategy alone.
    """
    with_repetition = context.recipe.cleaning.noise_mixture.with_repetition
    return remove_noise(context, "noise_mixture", *(("repetition",) if with_repetition else ()))


def repetition(context: RunContext) -> StrategyResult:
    """Every response token but those of passages that many rows share (``cleaning.repetition``)."""
    return remove_noise(context, "repetition")


def remove_noise(context: RunContext, name: str, *further: str) -> StrategyResult:
    """Every response token, cleaned by the method ``name``, those of ``further`` and of ``cleaning.also``."""
    methods = {name, *further, *context.recipe.cleaning.also}
    trained = train_without_noise(context, name, context.base, context.tokens.is_response, methods=methods)
    return result_of(context, name, trained)


def result_of(context: RunContext, strategy: str, trained: Trained) -> StrategyResult:
    """The result of a strategy with one training."""
    return StrategyResult(
        strategy,
        trained.model,
        trained.kept,
        rounds=(trained.model,),
        weights=fractions_of(trained.weights),
        noise=noise_found(context, trained.kept, trained.row_rates),
    )


def keep_best(context: RunContext, name: str, scores: Ragged, level: Level | None = None) -> StrategyResult:
    """Keep the top ``cleaning.proportion`` of the response tokens by ``scores`` (nats; NaN is never kept), or by those
    of their ``cleaning.unit``, and train the base on them. ``level``: where tokens are ranked, by default as
    ``cleaning.level`` says."""
    scores = context.data.ranked_scores(scores)
    kept = context.data.select(scores, level or context.recipe.cleaning.level)
    trained = train_without_noise(context, name, context.base, kept)
    return replace(result_of(context, name, trained), scores=scores)


def train_without_noise(
    context: RunContext,
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
    offline by the losses of ``model.reference``, else of the base. ``part``: see ``TrainingJob``.
    """
    methods = context.recipe.cleaning.also if methods is None else methods
    chosen = np.arange(len(context.tokens)) if rows is None else rows
    if "repetition" in methods:
        kept = kept.with_values(kept.values & ~context.noise.repetition.is_repeated.values)
    kept = context.data.fix_labels(kept)
    weights = weights_of(kept)
    if "noise_mixture" not in methods:
        return Trained(context.train(name, start, weights, rows, part=part), kept, weights)
    row_rates = np.full(len(context.tokens), np.nan)
    if context.recipe.cleaning.noise_mixture.mode == "online":
        job = context.training_job(name, start, weights, rows, mixture=context.noise.mixture, part=part)
        model = context.trainings.train(job)
        row_rates[chosen] = context.trainings.noise_rates(job, model)
    else:
        estimate = context.noise.estimate
        weights = weights.with_values(weights.values * estimate.weights.values)
        row_rates[chosen] = estimate.row_rates[chosen]
        model = context.train(name, start, weights, rows, part=part)
    return Trained(model, kept, weights, row_rates)


def fractions_of(weights: Ragged) -> Ragged | None:
    """The weights, if any is neither 0 nor 1."""
    return weights if np.any((weights.values != 0) & (weights.values != 1)) else None


def noise_found(context: RunContext, kept: Ragged, row_rates: np.ndarray | None) -> NoiseRates | None:
    """``noise_rates``; None without a mixture."""
    return None if row_rates is None else noise_rates(context, kept, row_rates)


def noise_rates(context: RunContext, kept: Ragged, row_rates: np.ndarray) -> NoiseRates:
    """The rows' rates with those of the pool and its sources, in which each row counts by its kept tokens."""
    tokens = np.where(np.isnan(row_rates), 0, kept.row_sums())
    noise = np.where(np.isnan(row_rates), 0.0, row_rates) * tokens
    names = np.array(context.tokens.sources)

    def share(is_counted: np.ndarray) -> float:
        total = tokens[is_counted].sum()
        return float(noise[is_counted].sum() / total) if total else math.nan

    sources = {name: share(names == name) for name in dict.fromkeys(context.tokens.sources)}
    return NoiseRates(share(np.ones(len(tokens), dtype=bool)), sources, row_rates)
