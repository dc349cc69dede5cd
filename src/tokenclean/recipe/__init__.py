"""The recipe: a whole experiment as one frozen object."""

from tokenclean.recipe.reading import PRESETS, load_recipe, recipe_from, source_from, training_from
from tokenclean.recipe.settings import (
    STRATEGIES,
    LoraSettings,
    PoolSettings,
    Recipe,
    SourceSettings,
    Strategy,
    TrainingSettings,
)

__all__ = [
    "PRESETS",
    "STRATEGIES",
    "LoraSettings",
    "PoolSettings",
    "Recipe",
    "SourceSettings",
    "Strategy",
    "TrainingSettings",
    "load_recipe",
    "recipe_from",
    "source_from",
    "training_from",
]
