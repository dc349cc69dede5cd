"""One-step influence of trusted rows: what a single gradient step on them makes likelier is kept.

s(t) = ℓ_θ(t) − ℓ_θ′(t), nats, with θ′ = θ − η·∇ (mean loss of the trusted rows): the paper's score with a reference
that took one plain step, which to first order is η times the product of the token's gradient and theirs (LESS, arXiv
2402.04333; IF-Guide, 2506.01790). Steps as long with random signs of the trusted rows give the score's null, so what
is dropped is further down than chance explains, and none is dropped where no more is found than chance gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.noise_removal import result_of, train_without_noise
from tokenclean.cleaning.strategy_result import StrategyResult, weights_of
from tokenclean.cleaning.token_passages import find_passages
from tokenclean.cleaning.trainings import TrainingJob
from tokenclean.ragged import Ragged
from tokenclean.selection.null_sums import QUANTILE, JudgedGroups, SumNull, fit_null, judge_groups
from tokenclean.token_table import multiply_weights
from tokenclean.tokens import TokenizedPool

NULLS = 8
"""Steps with random signs of the trusted rows."""

NULL_TOKENS = 4000
"""Response tokens, at least, on which the null is measured."""

LEAST_SPREAD = 0.05
"""No token counts as surer than this, so that rounding decides nothing."""

_NOTED_SENTENCES, _NOTED_CHARACTERS = 5, 100


@dataclass(frozen=True, eq=False)
class Influence:
    """Columns are aligned with the pool's tokens. ``base_loss``, ``step_loss``: float32 nats, under θ and θ′, NaN where
    nothing is judged. ``judged``: the sentences against ``null``, which was measured on the rows ``null_rows``."""

    base_loss: Ragged
    step_loss: Ragged
    null: SumNull
    judged: JudgedGroups
    null_rows: np.ndarray

    def __str__(self) -> str:
        null, judged = self.null, self.judged
        if not null.is_known:
            return (
                f"influence: keeps everything: the null has {null.sums:,} sums of sentences, and its {QUANTILE:.0%} "
                f"quantile needs {1 / QUANTILE:.0f} that differ"
            )
        tokens = judged.is_below.values.sum() / max(1, np.isfinite(judged.standardized.values).sum())
        found = (
            f"{judged.below:,} of {judged.groups:,} sentences ({tokens:.1%} of their tokens) are below the null's "
            f"{QUANTILE:.0%} quantile, which predicts {judged.expected:.1f} of them"
        )
        if not judged.is_more_than_chance:
            return f"influence: keeps everything: {found}; no more than chance gives"
        return f"influence: {found}; dropped"


def influence(context: RunContext) -> StrategyResult:
    """Every response token but those of sentences that a gradient step on the trusted rows makes less likely, by more
    than steps as long with random signs of these rows do (``cleaning.trusted``).

    A sentence's s is summed, in standard deviations of the null for its tokens; dropped is what is below the null's 1 %
    quantile, unless no more sentences are below it than chance gives. Tokens outside of sentences, such as end tokens,
    are kept.
    """
    found = measure_influence(context, context.tokens.take(context.data.trusted))
    _note_lowest(context, found)
    labels = context.tokens.is_response
    kept = labels.with_values(labels.values & ~found.judged.is_found.values)
    trained = train_without_noise(context, "influence", context.base, kept)
    losses = {"base_loss": found.base_loss, "reference_loss": found.step_loss}
    return replace(result_of(context, "influence", trained), losses=losses)


def measure_influence(context: RunContext, trusted: TokenizedPool) -> Influence:
    """Judge the sentences of all training rows but trusted ones by a step on the rows ``trusted``. Notes what is
    found."""
    weights = weights_of(trusted.is_response)
    if trusted.weight is not None:
        weights = multiply_weights(weights, trusted.weight)
    job = TrainingJob("step on trusted rows", context.base, trusted, weights)
    models = context.trainings.one_step(job, NULLS)
    if models.reached:
        context.note(f"influence: {models.reached}")
    rows = np.setdiff1d(np.arange(len(context.tokens)), context.data.trusted)
    sample = null_sample(context.tokens.is_response, rows, context.recipe.seed)
    sentence = find_passages(context.tokens, context.data.pool).sentence
    nulls = []
    base_loss, step_loss = context.pair_losses(context.base, models.step)
    spread = spread_of(base_loss)
    for model in models.nulls:
        of_base, of_null = context.split_losses(context.base, model, sample, "null sample")
        nulls.append(of_base - of_null)
    null = fit_null(nulls, sentence.take(sample), spread.take(sample))
    found = Influence(base_loss, step_loss, null, judge_groups(base_loss - step_loss, sentence, null, spread), sample)
    context.note(str(found))
    return found


def spread_of(base_loss: Ragged) -> Ragged:
    """1 − p of each token, at least ``LEAST_SPREAD``: the token's own part of the gradient of its loss with respect to
    the logits is p − 1, so a sure token's loss hardly changes with any step. NaN where there is no loss."""
    return base_loss.map_values(lambda loss: np.maximum(-np.expm1(-loss.astype(np.float64)), LEAST_SPREAD))


def null_sample(is_response: Ragged, rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows on which the null is measured: drawn at random until they have ``NULL_TOKENS`` response tokens, or all;
    int64, ascending."""
    drawn = np.random.default_rng(seed).permutation(rows)
    tokens = np.cumsum(is_response.row_sums()[drawn])
    return np.sort(drawn[: int(np.searchsorted(tokens, NULL_TOKENS)) + 1])


def _note_lowest(context: RunContext, found: Influence) -> None:
    """Show the sentences that are dropped with the lowest sums."""
    places = np.flatnonzero(found.judged.is_found.values)
    values, indices = np.unique(found.judged.standardized.values[places], return_inverse=True)
    for number, value in enumerate(values[:_NOTED_SENTENCES]):
        alike = places[indices == number]  # the same sentence may stand in several rows
        row, _ = context.tokens.input_ids.locate(int(alike[0]))
        ids = context.tokens.input_ids.values[alike[alike < context.tokens.input_ids.offsets[row + 1]]]
        text = " ".join(str(context.data.tokenizer.decode(ids.tolist())).split())
        context.note(f"  {value:.1f} deviations: {text[:_NOTED_CHARACTERS]}")
