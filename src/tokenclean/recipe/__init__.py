"""The recipe: a whole experiment as one frozen object."""

from tokenclean.recipe.pool_settings import (
    ContaminationSettings,
    CurationSettings,
    FiltersSettings,
    PoolSettings,
    RatingsSettings,
    SourceSettings,
)
from tokenclean.recipe.reading import PRESETS, load_recipe, recipe_from, source_from, training_from
from tokenclean.recipe.ready_sources import READY_SOURCES
from tokenclean.recipe.settings import LoraSettings, Recipe, ScoringSettings, TrainingSettings
from tokenclean.recipe.strategies import STRATEGIES, Strategy, find_strategy

__all__ = [
    "PRESETS",
    "READY_SOURCES",
    "STRATEGIES",
    "ContaminationSettings",
    "CurationSettings",
    "FiltersSettings",
    "LoraSettings",
    "PoolSettings",
    "RatingsSettings",
    "Recipe",
    "ScoringSettings",
    "SourceSettings",
    "Strategy",
    "TrainingSettings",
    "find_strategy",
    "load_recipe",
    "recipe_from",
    "source_from",
    "training_from",
]
