"""Noise whose place is known: as token labels, and as strategies that use the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.baselines import given_labels
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.strategy_result import weights_of
from tokenclean.cleaning.trainings import TrainingJob
from tokenclean.lab import NoiseSpan
from tokenclean.pool import Pool
from tokenclean.ragged import Ragged
from tokenclean.token_table import multiply_weights
from tokenclean.tokens import TokenizedPool, tokenize_pool, tokens_touching


def noise_tokens(tokens: TokenizedPool, spans: Sequence[NoiseSpan]) -> Ragged:
    """The truth as token labels: True for a response token that touches noise, bool, aligned."""
    return tokens_touching(tokens, places_of(spans))


def places_of(spans: Sequence[NoiseSpan]) -> list[tuple[int, int, int, int]]:
    """(row, turn, start, end) of each span."""
    return [(s.row, s.turn, s.start, s.end) for s in spans]


def oracle(is_noise: Ragged) -> Callable[[RunContext], StrategyResult]:
    """A strategy that keeps exactly the clean tokens: what perfect cleaning would give."""
    return masked("oracle", is_noise)


def masked(name: str, flagged: Ragged) -> Callable[[RunContext], StrategyResult]:
    """A strategy of this name that keeps every response token but the ``flagged`` ones (bool, aligned)."""

    def strategy(context: RunContext) -> StrategyResult:
        labels = context.tokens.is_response
        return given_labels(context, name, labels.with_values(labels.values & ~flagged.values))

    return strategy


def random_mask(is_noise: Ragged) -> Callable[[RunContext], StrategyResult]:
    """A strategy that drops as many response tokens as there are of noise, drawn by the recipe's seed: what the oracle
    would cost if noise were like any other token."""

    def strategy(context: RunContext) -> StrategyResult:
        labels = context.tokens.is_response
        response = np.flatnonzero(labels.values)
        generator = np.random.Generator(np.random.PCG64(context.recipe.seed))
        kept = labels.values.copy()
        kept[generator.choice(response, size=int(is_noise.values.sum()), replace=False)] = False
        return given_labels(context, "random_mask", labels.with_values(kept))

    return strategy


def corrected(clean: Pool) -> Callable[[RunContext], StrategyResult]:
    """A strategy that trains every response token of the corrected rows: what it is worth to correct noise, where the
    oracle only leaves it out.

    ``clean``: the training rows without their noise, in the same order. They have other tokens than the run's own, so
    the result has no kept ones. Raises ValueError for another number of rows.
    """

    def strategy(context: RunContext) -> StrategyResult:
        if len(clean) != len(context.tokens):
            raise ValueError(f"expected a corrected row for each of {len(context.tokens)} rows, got {len(clean)}")
        tokens = tokenize_pool(clean, context.data.tokenizer, **context.recipe.tokens.model_dump())
        weights = weights_of(tokens.is_response)
        if tokens.weight is not None:
            weights = multiply_weights(weights, tokens.weight)
        model = context.trainings.train(TrainingJob("corrected", context.base, tokens, weights))
        return StrategyResult("corrected", model, rounds=(model,))

    return strategy
