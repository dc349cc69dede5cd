"""One adapter through all rounds (``cleaning.adapters: one``): what each round takes of the one schedule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenclean.errors import ModelError
from tokenclean.models.loading.load import ModelSource
from tokenclean.recipe import Recipe
from tokenclean.tokens import TokenizedPool
from tokenclean.training.step_plan import SchedulePart, plan_parts


def schedule_parts(recipe: Recipe, tokens: TokenizedPool, splits: Sequence[np.ndarray]) -> list[SchedulePart | None]:
    """For each split the part of the schedule that its training takes; None where every round has its own schedule.

    Planned as if every row with a response token were trained, since what a round keeps is not known beforehand.
    ``tokens``: the training rows; ``splits``: row numbers of each.
    """
    if recipe.cleaning.adapters == "fresh":
        return [None] * len(splits)
    is_usable = tokens.is_trained.row_sums() > 0
    rows = [max(int(is_usable[split].sum()) - recipe.training.eval_rows, 1) for split in splits]
    return list(plan_parts(rows, recipe.training))


def check_base(recipe: Recipe, source: ModelSource) -> None:
    """Raise ModelError for a base that is an adapter itself, where ``cleaning.adapters: one`` needs a plain base."""
    if recipe.cleaning.adapters == "one" and source.adapter is not None:
        raise ModelError(
            f"model.base: {source.adapter} is an adapter, but cleaning.adapters: one keeps one adapter on a plain "
            "base; merge it into its base first, or take adapters: fresh"
        )
