"""Fixed-model cleaning (§4.3.1): one reference scores the whole pool, the base is trained on what it keeps."""

from __future__ import annotations

import numpy as np

from tokenclean.cleaning.noise import outcome_of, train_without_noise
from tokenclean.cleaning.reference import check_reference
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.cleaning.workshop import Workshop
from tokenclean.selection import select_tokens
from tokenclean.selection.ranking import Level


def fixed_model(workshop: Workshop) -> StrategyResult:
    """Keep the top k % of the whole pool by base loss − reference loss (Eq. 3 and 4) and fine-tune the base on it.

    The reference is ``model.reference``, else the warm-up on D̃_0. The warm-up's own rows are scored too, as in the
    paper, although their scores are biased upward.
    """
    return clean_with_fixed_reference(workshop, "fixed_model", workshop.recipe.cleaning.level)


def clean_with_fixed_reference(workshop: Workshop, strategy: str, level: Level) -> StrategyResult:
    """Score with the fixed reference, select at ``level``, train the base on the kept tokens."""
    reference = workshop.given_reference or workshop.warmup
    losses = {"base_loss": workshop.losses(workshop.base), "reference_loss": workshop.losses(reference)}
    scores = losses["base_loss"] - losses["reference_loss"]
    unseen = np.concatenate(workshop.splits[1:])  # rows the warm-up has not trained on
    check = check_reference(workshop, reference, scores.take(unseen), unseen)
    kept = select_tokens(
        scores,
        workshop.tokens.is_response,
        proportion=workshop.recipe.cleaning.proportion,
        level=level,
        sources=workshop.tokens.sources,
    )
    trained = train_without_noise(workshop, strategy, workshop.base, kept)
    return outcome_of(workshop, strategy, trained, scores=scores, losses=losses, checks=(check,))
