"""The recipe: a whole experiment as one frozen object."""

from tokenclean.recipe.executor_settings import ExecutorSettings
from tokenclean.recipe.for_data import DEFAULT_STRATEGY, LARGE_MODEL_PARAMETERS, data_values, is_recipe, short_yaml
from tokenclean.recipe.pool_settings import (
    CurationSettings,
    FiltersSettings,
    PoolSettings,
    RatingsSettings,
    SourceSettings,
)
from tokenclean.recipe.reading import PRESETS, load_recipe, recipe_from, source_from, training_from
from tokenclean.recipe.ready_sources import READY_SOURCES
from tokenclean.recipe.server_settings import ServedModel
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
    "DEFAULT_STRATEGY",
    "LARGE_MODEL_PARAMETERS",
    "PRESETS",
    "READY_SOURCES",
    "STRATEGIES",
    "CleaningSettings",
    "CurationSettings",
    "ExecutorSettings",
    "FiltersSettings",
    "LoraSettings",
    "ModelSettings",
    "PoolSettings",
    "RatingsSettings",
    "Recipe",
    "ScoringSettings",
    "ServedModel",
    "SourceSettings",
    "Strategy",
    "Template",
    "TokensSettings",
    "TrainingSettings",
    "data_values",
    "find_strategy",
    "is_recipe",
    "load_recipe",
    "recipe_from",
    "short_yaml",
    "source_from",
    "training_from",
]
