"""What a strategy returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tokenclean.cleaning.choice import Choice
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.reference_check import ReferenceCheck
from tokenclean.cleaning.round_records import Round
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.selection import NoiseRates


@dataclass(frozen=True)
class StrategyResult:
    """The result of one strategy over the training pool.

    ``model``: the final model. ``kept``: bool, aligned with the pool's tokens (ŷ); None where none of them was trained.
    ``scores``: float32 nats, NaN where no score was needed; None for a strategy without scores. ``losses``: by the name
    of their column the two that a score subtracts. ``checks``: every reference it used. ``rounds``: all models
    trained, the final one last. ``round_records``: what each round of self-evolving cleaning did, a rolled-back one
    too; empty for the other strategies. ``weights``: float32, of the kept tokens, where they are not all 1. ``noise``:
    what a noise mixture found. ``level``: where its strategy ranks tokens, if not where ``cleaning.level`` says.
    ``choice``: what the run decided by itself, where it did.
    """

    strategy: str
    model: Model
    kept: Ragged | None = None
    scores: Ragged | None = None
    losses: Mapping[str, Ragged] = field(default_factory=dict)
    checks: tuple[ReferenceCheck, ...] = ()
    rounds: tuple[Model, ...] = ()
    round_records: tuple[Round, ...] = ()
    weights: Ragged | None = None
    noise: NoiseRates | None = None
    level: str | None = None
    choice: Choice | None = None


def proportion_of(recipe: Recipe, result: StrategyResult) -> float:
    """The share of tokens that a ranking strategy kept: what it chose where ``cleaning.proportion`` is ``auto``."""
    chosen = None if result.choice is None else result.choice.proportion
    return recipe.cleaning.kept_proportion if chosen is None else chosen


def weights_of(kept: Ragged) -> Ragged:
    """Token weights 1.0 for kept and 0.0 for dropped, float32."""
    return kept.map_values(lambda labels: labels.astype(np.float32))
