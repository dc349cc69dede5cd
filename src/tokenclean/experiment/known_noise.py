"""Noise whose place is known: as token labels, and as strategies that use the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.baselines import given_labels
from tokenclean.cleaning.context import RunContext
from tokenclean.lab import NoiseSpan
from tokenclean.ragged import Ragged
from tokenclean.tokens import TokenizedPool, tokens_touching


def noise_tokens(tokens: TokenizedPool, spans: Sequence[NoiseSpan]) -> Ragged:
    """The truth as token labels: True for a response token that touches noise, bool, aligned."""
    return tokens_touching(tokens, places_of(spans))


def places_of(spans: Sequence[NoiseSpan]) -> list[tuple[int, int, int, int]]:
    """(row, turn, start, end) of each span."""
    return [(s.row, s.turn, s.start, s.end) for s in spans]


def oracle(is_noise: Ragged) -> Callable[[RunContext], StrategyResult]:
    """A strategy that keeps exactly the clean tokens: what perfect cleaning would give."""

    def strategy(context: RunContext) -> StrategyResult:
        labels = context.tokens.is_response
        return given_labels(context, "oracle", labels.with_values(labels.values & ~is_noise.values))

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
