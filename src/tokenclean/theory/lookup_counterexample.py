"""A class of models for which Eq. 5 fails: look-up tables, asked for contexts they have not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tokenclean.theory.bounds import error_bound


@dataclass(frozen=True)
class LookupTables:
    """True errors of look-up tables learned from independent draws of tokens, and the bounds of these errors."""

    errors: np.ndarray
    """L_D(θ̂), the true 0-1 error after each draw, float64 of shape (draws,)."""
    expected_error: float
    """Its exact expectation, (1 - 1/contexts)^tokens · (1 - 1/vocabulary)."""
    bound: float
    """Eq. 5: sqrt(2 log(4/δ) / M), as no label is noisy."""
    bound_of_class: float
    """The bound with log|F| = contexts · log(vocabulary)."""
    share_above_bound: float
    """Share of the draws whose error is above Eq. 5, which promises at most δ."""
    share_above_bound_of_class: float
    """Share of the draws whose error is above the bound with log|F|."""


def learn_lookup_tables(
    contexts: int, vocabulary: int, tokens: int, delta: float = 0.05, *, draws: int = 100, seed: int = 0
) -> LookupTables:
    """Learn a look-up table from ``tokens`` tokens, ``draws`` times, and compare its true error with the bounds.

    All assumptions of Theorem 5.1 hold: the contexts x_prev of the tokens are drawn independently and uniformly from
    ``contexts``, each has one next token, every token is a valid target (η = 0), and F, all tables that give each
    context a token of ``vocabulary``, holds the true one. Training minimises the 0-1 loss: the table is right where it
    has seen the context. The tokens say nothing about the other entries, so these are drawn at random (a table with any
    entries there minimises the loss too); an entry is wrong with probability 1 - 1/vocabulary.

    With many more contexts than tokens nearly every context is new, as in text, and the error stays near
    1 - 1/vocabulary, while Eq. 5 falls like 1/sqrt(M). The bound with log|F| is above 1 there and promises nothing.

    ``contexts``, ``tokens`` and ``draws`` are whole numbers from 1, ``vocabulary`` from 2, δ lies in (0, 1); else
    ValueError. A draw takes ``contexts`` + 8 ``tokens`` bytes of memory. The same ``seed`` gives the same errors.
    """
    for name, number in {"contexts": contexts, "vocabulary": vocabulary, "tokens": tokens, "draws": draws}.items():
        least = 2 if name == "vocabulary" else 1
        if number != int(number) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {number}")
    bound = error_bound(0.0, tokens, delta)
    bound_of_class = error_bound(0.0, tokens, delta, contexts * math.log(vocabulary))
    generator = np.random.default_rng(seed)
    errors = np.empty(draws)
    for draw in range(draws):
        is_seen = np.zeros(contexts, dtype=bool)
        is_seen[generator.integers(contexts, size=tokens)] = True
        unseen = contexts - np.count_nonzero(is_seen)
        errors[draw] = generator.binomial(unseen, 1 - 1 / vocabulary) / contexts
    return LookupTables(
        errors=errors,
        expected_error=(1 - 1 / contexts) ** tokens * (1 - 1 / vocabulary),
        bound=bound,
        bound_of_class=bound_of_class,
        share_above_bound=float(np.mean(errors > bound)),
        share_above_bound_of_class=float(np.mean(errors > bound_of_class)),
    )
