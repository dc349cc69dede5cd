"""Detectors of noise: each a pure function of per-token columns that a run has stored, higher for likelier noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from tokenclean.lab.passages import Passages, fill_passages
from tokenclean.lab.prompt_mismatch import find_mismatches
from tokenclean.ragged import Ragged
from tokenclean.recipe.cleaning_settings import CleaningSettings
from tokenclean.selection import NoiseEstimate, find_repetition, select_tokens, surprisal_table, token_posterior
from tokenclean.selection.group_scores import group_scores
from tokenclean.selection.null_sums import JudgedGroups
from tokenclean.selection.ranking import Level

CONFLICT_EXCESS = 0.25
"""S2 − p above which ``conflict`` believes the noise mixture: the model is sure of another token."""

EAFT_NATS = 3.0
"""The entropy at which EAFT gives a token its full weight, about that of 20 equal choices."""

STM_PERPLEXITY = 2.5
"""The perplexity above which STM drops a token."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of N rows, aligned token by token; floats are NaN outside the response.

    ``input_ids``: int64; ``is_response``: bool; ``base_loss``: float32 nats; ``score``: float32, base loss − reference
    loss in nats. ``sources``: N names. ``settings``: the recipe's ``cleaning`` section. ``vocabulary``: number of token
    ids. ``entropy``, ``collision``: the base's further columns (``scoring.scorer.FURTHER_COLUMNS``).
    ``unconditional_loss``: the base's without the prompt. ``foreign_losses``: the base's under foreign prompts, one
    column each, NaN in rows for which there are not enough. ``passages``: sentences and words. ``influence``: sentences
    by one-step influence of trusted rows. What was not computed is None.
    """

    input_ids: Ragged
    is_response: Ragged
    base_loss: Ragged
    score: Ragged | None
    sources: tuple[str, ...]
    settings: CleaningSettings
    vocabulary: int
    entropy: Ragged | None = None
    collision: Ragged | None = None
    unconditional_loss: Ragged | None = None
    foreign_losses: tuple[Ragged, ...] | None = None
    passages: Passages | None = None
    influence: JudgedGroups | None = None

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
            scores, self.is_response, proportion=self.settings.kept_proportion, level=level, sources=self.sources
        )
        return kept.with_values(self.is_response.values & ~kept.values)


@dataclass(frozen=True, eq=False)
class Detection:
    """What a detector makes of the response tokens. ``scores``: float, higher for likelier noise. ``flagged``: bool,
    the tokens that it calls noise by itself; None where it draws no line. ``estimated_rate``: its own estimate of the
    share of noise; None where it makes none. ``is_probability``: whether the scores are probabilities of noise.
    ``judges_passages``: whether it judges whole passages and not single tokens. Columns hold anything outside the
    response."""

    scores: Ragged
    flagged: Ragged | None = None
    estimated_rate: float | None = None
    is_probability: bool = False
    judges_passages: bool = False


FillUnit = Literal["sentence", "clause"]
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
    return _posterior(columns, columns.mixture.weights.map_values(lambda w: 1.0 - w.astype(np.float64)))


def excess(columns: Columns) -> Detection | None:
    """S2 − p: large where the model is confident in a different token (see ``conflict``)."""
    found = _excess(columns)
    return None if found is None else Detection(columns.is_response.with_values(found))


def conflict(columns: Columns) -> Detection | None:
    """The noise mixture's posterior where the model is sure of another token, S2 − p > 0.25, and 0 elsewhere; flags as
    ``noise_mixture``.

    S2 = Σ_v p_v², the column ``collision``. A label drawn from the model's distribution has E[p] = S2, so S2 − p
    averages 0 at any entropy: rare names and open choices stay well below the threshold.
    """
    if (above := _excess(columns)) is None:
        return None
    noise = np.where(above > CONFLICT_EXCESS, 1.0 - columns.mixture.weights.values.astype(np.float64), 0.0)
    return _posterior(columns, columns.is_response.with_values(noise))


def mismatch(columns: Columns) -> Detection | None:
    """Probability that the row's answer does not belong to its prompt (``prompt_mismatch``); flags rows above 0.5."""
    return _mismatch(columns, columns.is_response.with_values(columns.is_response.row_of_value()))


def mismatch_by_sentence(columns: Columns) -> Detection | None:
    """The same of each sentence."""
    return None if columns.passages is None else _mismatch(columns, columns.passages.sentence)


def influence(columns: Columns) -> Detection | None:
    """−(sum of base loss − loss after a gradient step on trusted rows, over the sentence), in standard deviations of
    its null, 0 outside of sentences; flags what the strategy ``influence`` drops."""
    if (judged := columns.influence) is None:
        return None
    rate = float(judged.is_found.values[columns.is_response.values].mean())
    scores = judged.standardized.map_values(lambda values: -np.nan_to_num(values, nan=0.0))
    return Detection(scores, judged.is_found, rate, judges_passages=True)


def repetition(columns: Columns) -> Detection:
    """1.0 inside a passage that many rows share, else 0.0; the rate is the share of these tokens."""
    found = find_repetition(columns.input_ids, columns.is_response, columns.settings.repetition).is_repeated
    rate = float(found.values[columns.is_response.values].mean())
    return Detection(found.map_values(lambda values: values.astype(np.float64)), found, rate, judges_passages=True)


def ent(columns: Columns) -> Detection | None:
    """‖p − onehot(y)‖₂ = √(1 − 2 p_y + S2), the error norm of ENT (arXiv 2310.00840); flags the highest of the pool, a
    share of 1 − ``cleaning.proportion``."""
    if columns.collision is None:
        return None
    squared = 1 - 2 * _probability(columns) + columns.collision.values.astype(np.float64)
    norm = columns.is_response.with_values(np.sqrt(np.maximum(squared, 0.0)))
    return Detection(norm, columns.dropped(_negative(norm), "global"))


def eaft(columns: Columns) -> Detection | None:
    """1 − EAFT's weight min(H / 3 nats, 1), with H the entropy of the whole distribution in place of the top 20's."""
    if columns.entropy is None:
        return None
    return Detection(columns.entropy.map_values(lambda nats: 1 - np.minimum(nats.astype(np.float64) / EAFT_NATS, 1)))


def stm(columns: Columns) -> Detection:
    """Loss under the base; flags tokens of a perplexity above 2.5 (selective token masking)."""
    return Detection(columns.base_loss, columns.base_loss.map_values(lambda loss: loss > math.log(STM_PERPLEXITY)))


def pmi(columns: Columns) -> Detection | None:
    """ℓ(y | x) − ℓ(y): how much less likely the prompt makes the token, nats."""
    return None if columns.unconditional_loss is None else Detection(columns.base_loss - columns.unconditional_loss)


def t_shirt(columns: Columns) -> Detection | None:
    """−|ℓ(y | x) − ℓ(y)|; flags the tokens that the prompt changes least, the token rule of T-SHIRT (arXiv 2506.01317),
    a share of 1 − ``cleaning.proportion`` of the pool."""
    if columns.unconditional_loss is None:
        return None
    change = (columns.base_loss - columns.unconditional_loss).map_values(np.abs)
    return Detection(_negative(change), columns.dropped(change, "global"))


def fixed_model(columns: Columns) -> Detection | None:
    """Reference loss − base loss; flags what the strategy ``fixed_model`` drops where it ranks single tokens."""
    return _against_reference(columns, columns.settings.level)


def fixed_model_by_sentence(columns: Columns) -> Detection | None:
    """The same of each sentence, as with ``cleaning.unit: sentence`` (``group_scores``)."""
    if columns.passages is None:
        return None
    return _against_reference(columns, columns.settings.level, columns.passages.sentence)


def fixed_model_by_row(columns: Columns) -> Detection | None:
    """The same of each row, as with ``cleaning.unit: row``."""
    row = columns.is_response.with_values(columns.is_response.row_of_value())
    return _against_reference(columns, columns.settings.level, row)


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
        excess,
        conflict,
        mismatch,
        mismatch_by_sentence,
        repetition,
        ent,
        eaft,
        stm,
        pmi,
        t_shirt,
        influence,
        fixed_model,
        fixed_model_by_sentence,
        fixed_model_by_row,
        rho,
    )
}
"""Every detector by name; those that are strategies have the strategy's name."""


def fill(detection: Detection, columns: Columns, unit: FillUnit) -> Detection | None:
    """The detection with each onset carried to the end of its sentence or clause (``passages.fill_passages``).

    The rate is estimated again: from the carried scores if they are probabilities, else from the flags. None where
    the detection draws no line or judges passages already, and where the columns have no ``passages``.
    """
    if detection.flagged is None or detection.judges_passages or columns.passages is None:
        return None
    response = columns.is_response.values
    flagged = detection.flagged.with_values(detection.flagged.values & response)
    places = columns.passages.sentence if unit == "sentence" else columns.passages.clause
    scores, flags = fill_passages(detection.scores, flagged, columns.passages.begins_content_word, places)
    rate = None
    if detection.estimated_rate is not None:
        rate = float((scores if detection.is_probability else flags).values[response].mean())
    return Detection(scores, flags, rate, detection.is_probability, judges_passages=True)


def _posterior(columns: Columns, noise: Ragged, *, judges_passages: bool = False) -> Detection:
    """Of probabilities of noise: flags what is likelier noise than not, and the mean over the response as the rate."""
    flagged = noise.map_values(lambda probability: probability > 0.5)
    rate = float(noise.values[columns.is_response.values].mean())
    return Detection(noise, flagged, rate, is_probability=True, judges_passages=judges_passages)


def _mismatch(columns: Columns, group: Ragged) -> Detection | None:
    if columns.foreign_losses is None:
        return None
    found = find_mismatches(columns.base_loss, columns.foreign_losses, columns.is_response, group)
    return _posterior(columns, found.noise, judges_passages=True)


def _excess(columns: Columns) -> np.ndarray | None:
    if columns.collision is None:
        return None
    return columns.collision.values.astype(np.float64) - _probability(columns)


def _probability(columns: Columns) -> np.ndarray:
    return np.exp(-columns.base_loss.values.astype(np.float64))


def _against_reference(columns: Columns, level: Level, group: Ragged | None = None) -> Detection | None:
    if columns.score is None:
        return None
    score = columns.score if group is None else group_scores(columns.score, group)
    return Detection(_negative(score), columns.dropped(score, level), judges_passages=group is not None)


def _negative(column: Ragged) -> Ragged:
    return column.map_values(np.negative)
