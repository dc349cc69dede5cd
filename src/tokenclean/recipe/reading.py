"""Recipes from a preset, a YAML file and ``a.b=c`` overrides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tokenclean.errors import RecipeError
from tokenclean.recipe.error_messages import did_you_mean, explain_all
from tokenclean.recipe.pool_settings import SourceSettings
from tokenclean.recipe.settings import Recipe, TrainingSettings
from tokenclean.redaction import holds_secret

_Section = TypeVar("_Section", bound=BaseModel)

PRESETS = ("paper", "quick", "demo")


def load_recipe(path: Path | str, overrides: Iterable[str] = (), intake: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe file, or a preset by its name, and apply overrides such as ``training.epochs=2``.

    ``intake``: keys of SourceSettings for every source of the pool.

    Relative pool paths in a file are taken from the current folder. Raises RecipeError listing every fault at once,
    unknown keys with a did-you-mean.
    """
    path = Path(path)
    if path.is_file():
        values, source = _read_yaml(_read_text(path), str(path)), str(path)
    elif str(path) in PRESETS:
        values, source = {"preset": str(path)}, f"preset {path}"
    else:
        raise RecipeError(f"no such recipe file; the presets are {', '.join(PRESETS)}", str(path))
    return recipe_from(values, overrides, source, intake)


def recipe_from(
    values: Mapping[str, Any],
    overrides: Iterable[str] = (),
    source: str = "recipe",
    intake: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build a recipe from nested values (``preset`` names the values underneath) and overrides. Raises RecipeError.

    ``intake``: as of ``load_recipe``.
    """
    values = dict(values)
    problems: list[str] = []
    preset = values.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        problems.append(f"preset: unknown preset {preset!r}{did_you_mean(str(preset), PRESETS)}")
    merged: dict[str, Any] = _merge(_preset_values(preset), values) if preset in PRESETS else dict(values)
    for override in overrides:
        try:
            _apply_override(merged, override)
        except ValueError as error:
            problems.append(str(error))
    _apply_intake(merged, intake or {})
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        problems += explain_all(error)
    problems += [
        f"{key}: looks like a token or password; keys come from the environment only" for key in _secrets_in(merged)
    ]
    if problems:
        raise RecipeError(problems, source)
    return recipe  # pyright: ignore[reportPossiblyUnboundVariable]


def training_from(values: Mapping[str, Any]) -> TrainingSettings:
    """Training settings alone, from nested values. Raises RecipeError listing every fault."""
    return _section_from(TrainingSettings, values, "training")


def source_from(values: Mapping[str, Any]) -> SourceSettings:
    """One source of a pool, from its values. Raises RecipeError listing every fault."""
    return _section_from(SourceSettings, values, "source")


def _section_from(kind: type[_Section], values: Mapping[str, Any], name: str) -> _Section:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain_all(error), name) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read as UTF-8 text ({error})", str(path)) from error


def _read_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-01
        raise RecipeError(f"not valid YAML: {' '.join(str(error).split())}", source) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of sections (pool, model, cleaning, …)", source)
    return values


def _preset_values(preset: str) -> dict[str, Any]:
    text = (resources.files("tokenclean") / "data" / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    return _read_yaml(text, f"preset {preset}")


def _secrets_in(value: Any, path: str = "") -> Iterator[str]:
    """Places of texts that hold a secret, which would stand in every manifest."""
    if isinstance(value, str) and holds_secret(value):
        yield path
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _secrets_in(inner, f"{path}.{key}" if path else str(key))


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _apply_intake(values: dict[str, Any], intake: Mapping[str, Any]) -> None:
    pool = values.get("pool")
    sources = pool.get("sources") if isinstance(pool, Mapping) else None
    for source in (sources if isinstance(sources, list) else []) if intake else []:
        if isinstance(source, dict):
            source.update(_merge(source, intake))


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {override}: expected key=value, such as training.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"--set {override}: the value is not valid YAML") from error
    *parents, last = path.split(".")
    place: Any = values
    for depth, part in enumerate([*parents, last]):
        where = ".".join([*parents, last][: depth + 1])
        is_last = depth == len(parents)
        if isinstance(place, list):
            if not part.isdecimal() or int(part) > len(place):
                raise ValueError(f"--set {where}: this is a list of {len(place)}; give an index from 0 to {len(place)}")
            if int(part) == len(place):
                place.append({})
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            raise ValueError(f"--set {where}: {'.'.join([*parents, last][:depth])} is a value, not a section")
        if is_last:
            place[key] = value
        else:
            below = place[key] if isinstance(place, list) else place.get(key)
            following = [*parents, last][depth + 1]
            if below is None or isinstance(below, tuple):
                below = list(below or []) if following.isdecimal() else {}
            place[key] = dict(below) if isinstance(below, dict) else list(below) if isinstance(below, list) else below
            place = place[key]
