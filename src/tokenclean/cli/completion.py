"""What the Tab key offers: data, recipes, keys of a recipe and their values, strategies."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from tokenclean.recipe import PRESETS, STRATEGIES, Recipe
from tokenclean.recipe.base_settings import Section


def complete_recipe(incomplete: str) -> list[str]:
    """Presets by name, and recipe files here and one folder down; with none of them the shell offers its files."""
    files = [name for pattern in ("*.yaml", "*/*.yaml") for name in sorted(glob(f"{incomplete}{pattern}"))]
    return [*(name for name in PRESETS if name.startswith(incomplete)), *files]


def complete_data(incomplete: str) -> list[str]:
    """Presets by name, and what is in this folder or in the one that is named so far: data may have any name."""
    places = sorted(glob(f"{incomplete}*"))
    if len(places) == 1 and Path(places[0]).is_dir():
        places = sorted(glob(f"{places[0].rstrip('/')}/*"))
    return [*(name for name in PRESETS if name.startswith(incomplete)), *places]


def complete_override(incomplete: str) -> list[str]:
    """Keys as ``key=``, and behind the equals sign the values of a key that has choices."""
    key, equals, value = incomplete.partition("=")
    keys = dict(_keys(Recipe, ""))
    if not equals:
        return [f"{name}=" for name in keys if name.startswith(key)]
    return [f"{key}={choice}" for choice in _choices(key, keys.get(key)) if choice.startswith(value)]


def complete_strategy(incomplete: str) -> list[str]:
    """Names of strategies."""
    return [name for name in STRATEGIES if name.startswith(incomplete)]


def complete_strategies(incomplete: str) -> list[str]:
    """The last name of a list that is separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    return [f"{before}{comma}{name}" for name in complete_strategy(last) if name not in named]


def _choices(key: str, field: FieldInfo | None) -> list[str]:
    if key == "cleaning.strategy":
        return list(STRATEGIES)
    if field is None:
        return []
    if field.annotation is bool:
        return ["true", "false"]
    kinds = (field.annotation, *get_args(field.annotation))
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def _keys(section: type[Section], path: str) -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its field; those of a list of sections with the index 0."""
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if inner is None:
            yield f"{path}{name}", field
        else:
            index = "0." if get_origin(field.annotation) is tuple else ""
            yield from _keys(inner, f"{path}{name}.{index}")
