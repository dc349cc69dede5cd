"""The baselines of §6.1: base, DS², full tokens, uniform random, RHO; a control for self-evolving cleaning; and
training on labels given from outside."""

from __future__ import annotations

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.fixed_model import clean_with_fixed_reference
from tokenclean.cleaning.strategy_result import StrategyResult, weights_of
from tokenclean.ragged import Ragged


def none(context: RunContext) -> StrategyResult:
    """BASE: the base model, untrained."""
    return StrategyResult("none", context.base)


def ds2(context: RunContext) -> StrategyResult:
    """DS²: every response token of the ``cleaning.ds2_rows`` best-rated rows. With ``cleaning.warmup: ds2`` this is the
    warm-up."""
    labels, rows = context.tokens.is_response, context.data.best_rated
    kept = np.zeros(len(labels.values), dtype=bool)
    places = context.data.indices(rows)
    kept[places] = labels.values[places]
    labels = context.data.fix_labels(labels.with_values(kept))
    rows = np.union1d(rows, np.flatnonzero(labels.row_sums()))  # people may keep tokens of other rows
    model = context.train("ds2", context.base, weights_of(labels), rows)
    return StrategyResult("ds2", model, labels, rounds=(model,))


def full_tokens(context: RunContext) -> StrategyResult:
    """FULL TOKENS: every response token is trained."""
    return given_labels(context, "full_tokens", context.tokens.is_response)


def full_tokens_from_warmup(context: RunContext) -> StrategyResult:
    """The control that starts where self-evolving starts: θ_1 fine-tuned on D̃_1 … D̃_T with full tokens.

    One training takes the rows split by split, as self-evolving sees them. With ``cleaning.adapters: one`` there is a
    training a split, as in self-evolving with everything kept: it takes the rest of the same schedule in the same
    number of steps. D̃_0, on which θ_1 was warmed up, counts as kept whole, so every response token is kept.
    """
    name, labels = "full_tokens_from_warmup", context.tokens.is_response
    later = list(zip(context.data.splits[1:], context.data.parts[1:], strict=True))
    if context.data.parts[0] is None:
        later = [(np.concatenate(context.data.splits[1:]), None)]
    rounds = [context.initial_reference]
    for number, (rows, part) in enumerate(later, start=1):
        of_round = name if number == len(later) else f"{name}-{number}"
        rounds.append(context.train(of_round, rounds[-1], weights_of(labels), rows, part=part))
    return StrategyResult(name, rounds[-1], labels, rounds=tuple(rounds))


def random(context: RunContext) -> StrategyResult:
    """UNIFORM RANDOM: k % of the pool's response tokens without replacement, seeded."""
    return given_labels(context, "random", context.data.select(None, "random"))


def rho(context: RunContext) -> StrategyResult:
    """RHO: the score of Eq. 3, ranked within each sample."""
    return clean_with_fixed_reference(context, "rho", "sample")


def given_labels(context: RunContext, strategy: str, kept: Ragged) -> StrategyResult:
    """Train the base on the tokens labelled True (bool, aligned with the pool's tokens)."""
    model = context.train(strategy, context.base, weights_of(kept))
    return StrategyResult(strategy, model, kept, rounds=(model,))
