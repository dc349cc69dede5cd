"""Fixed-model cleaning (§4.3.1): one reference scores the whole pool, the base is trained on what it keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.noise_removal import keep_best
from tokenclean.cleaning.reference_check import check_reference
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.selection.ranking import Level


def fixed_model(context: RunContext) -> StrategyResult:
    """Keep the top k % of the whole pool by base loss − reference loss (Eq. 3 and 4) and fine-tune the base on it.

    The reference is ``model.reference``, else the warm-up on D̃_0. The warm-up's own rows are scored too, as in the
    paper, although their scores are biased upward; trusted rows are not, since they are kept whole.
    """
    return clean_with_fixed_reference(context, "fixed_model", context.recipe.cleaning.level)


def clean_with_fixed_reference(context: RunContext, strategy: str, level: Level) -> StrategyResult:
    """Score with the fixed reference, select at ``level``, train the base on the kept tokens."""
    reference = context.given_reference or context.warmup
    base_loss, reference_loss = context.pair_losses(context.base, reference)
    scores, losses = base_loss - reference_loss, {"base_loss": base_loss, "reference_loss": reference_loss}
    unseen = np.concatenate(context.data.splits[1:])  # rows the warm-up has not trained on
    check = check_reference(context, reference, scores.take(unseen), unseen)
    return replace(keep_best(context, strategy, scores, level), losses=losses, checks=(check,))
