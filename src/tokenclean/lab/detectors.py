"""Detectors of noise: each a pure function of per-token columns that a run has stored, higher for likelier noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenclean.ragged import Ragged
from tokenclean.recipe.settings import CleaningSettings
from tokenclean.selection import NoiseEstimate, find_repetition, select_tokens, surprisal_table, token_posterior
from tokenclean.selection.ranking import Level


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of N rows, aligned token by token.

    ``input_ids``: int64; ``is_response``: bool; ``base_loss``: float32 nats, NaN outside the response; ``score``:
    float32, base loss − reference loss in nats, None without a reference. ``sources``: N names. ``settings``: the
    recipe's ``cleaning`` section. ``vocabulary``: number of token ids.
    """

    input_ids: Ragged
    is_response: Ragged
    base_loss: Ragged
    score: Ragged | None
    sources: tuple[str, ...]
    settings: CleaningSettings
    vocabulary: int

    @cached_property
    def surprisal(self) -> Ragged:
        """Unigram surprisal of each token among the rows' response tokens, float32 nats."""
        table = surprisal_table(self.input_ids, self.is_response, self.vocabulary)
        return self.input_ids.map_values(lambda ids: table[ids])

    @cached_property
    def mixture(self) -> NoiseEstimate:
        """The noise mixture fitted to the base's losses."""
        return token_posterior(self.base_loss, self.surprisal, self.is_response, self.settings.noise_mixture)

    def dropped(self, scores: Ragged, level: Level) -> Ragged:
        """Response tokens that a strategy drops which keeps the top ``cleaning.proportion`` by these scores; bool."""
        kept = select_tokens(
            scores, self.is_response, proportion=self.settings.proportion, level=level, sources=self.sources
        )
        return kept.with_values(self.is_response.values & ~kept.values)


@dataclass(frozen=True, eq=False)
class Detection:
    """What a detector makes of the response tokens. ``scores``: float, higher for likelier noise. ``flagged``: bool,
    the tokens that it calls noise by itself; None where it draws no line. ``estimated_rate``: its own estimate of the
    share of noise; None where it makes none. ``is_probability``: whether the scores are probabilities of noise. Columns
    hold anything outside the response."""

    scores: Ragged
    flagged: Ragged | None = None
    estimated_rate: float | None = None
    is_probability: bool = False


Detector = Callable[[Columns], Detection | None]
"""None where a column that it needs is not there."""


def base_loss(columns: Columns) -> Detection:
    """Loss under the base."""
    return Detection(columns.base_loss)


def loss_minus_surprisal(columns: Columns) -> Detection:
    """Loss under the base − unigram surprisal: how much worse than its frequency the context makes a token."""
    return Detection(columns.base_loss - columns.surprisal)


def loss_rank_in_row(columns: Columns) -> Detection:
    """Share of the row's response tokens whose loss is at most this token's; flags the highest of each row."""
    ranks = np.zeros(len(columns.base_loss.values))
    offsets = columns.base_loss.offsets
    for row in range(len(columns.base_loss)):
        places = np.flatnonzero(columns.is_response[row]) + offsets[row]
        losses = columns.base_loss.values[places]
        if len(places):
            ranks[places] = np.searchsorted(np.sort(losses), losses, side="right") / len(places)
    return Detection(columns.base_loss.with_values(ranks), columns.dropped(_negative(columns.base_loss), "sample"))


def noise_mixture(columns: Columns) -> Detection:
    """Posterior of noise, 1 − w; flags tokens with w < 0.5."""
    weights = columns.mixture.weights
    noise = weights.map_values(lambda w: 1.0 - w.astype(np.float64))
    rate = float(noise.values[columns.is_response.values].mean())
    return Detection(noise, weights.map_values(lambda w: w < 0.5), rate, is_probability=True)


def repetition(columns: Columns) -> Detection:
    """1.0 inside a passage that many rows share, else 0.0; the rate is the share of these tokens."""
    found = find_repetition(columns.input_ids, columns.is_response, columns.settings.repetition).is_repeated
    rate = float(found.values[columns.is_response.values].mean())
    return Detection(found.map_values(lambda values: values.astype(np.float64)), found, rate)


def fixed_model(columns: Columns) -> Detection | None:
    """Reference loss − base loss; flags what the strategy ``fixed_model`` drops."""
    return _against_reference(columns, columns.settings.level)


def rho(columns: Columns) -> Detection | None:
    """Reference loss − base loss; flags what the strategy ``rho`` drops."""
    return _against_reference(columns, "sample")


DETECTORS: dict[str, Detector] = {
    function.__name__: function
    for function in (
        base_loss,
        loss_minus_surprisal,
        loss_rank_in_row,
        noise_mixture,
        repetition,
        fixed_model,
        rho,
    )
}
"""Every detector by name; those that are strategies have the strategy's name."""


def _against_reference(columns: Columns, level: Level) -> Detection | None:
    if columns.score is None:
        return None
    return Detection(_negative(columns.score), columns.dropped(columns.score, level))


def _negative(column: Ragged) -> Ragged:
    return column.map_values(np.negative)
