"""The recipe: a whole experiment as one frozen object."""

from tokenclean.recipe.pool_settings import (
    CurationSettings,
    FiltersSettings,
    PoolSettings,
    RatingsSettings,
    SourceSettings,
)
from tokenclean.recipe.reading import PRESETS, load_recipe, recipe_from, source_from, training_from
from tokenclean.recipe.ready_sources import READY_SOURCES
from tokenclean.recipe.settings import (
    CleaningSettings,
    LoraSettings,
    ModelSettings,
    Recipe,
    ScoringSettings,
    Template,
    TokensSettings,
    TrainingSettings,
)
from tokenclean.recipe.strategies import STRATEGIES, Strategy, find_strategy

__all__ = [
    "PRESETS",
    "READY_SOURCES",
    "STRATEGIES",
    "CleaningSettings",
    "CurationSettings",
    "FiltersSettings",
    "LoraSettings",
    "ModelSettings",
    "PoolSettings",
    "RatingsSettings",
    "Recipe",
    "ScoringSettings",
    "SourceSettings",
    "Strategy",
    "Template",
    "TokensSettings",
    "TrainingSettings",
    "find_strategy",
    "load_recipe",
    "recipe_from",
    "source_from",
    "training_from",
]
