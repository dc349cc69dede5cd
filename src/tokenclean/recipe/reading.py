"""Recipes from a preset, a YAML file and overrides such as ``training.epochs=2``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from tokenclean.errors import RecipeError
from tokenclean.recipe.error_messages import did_you_mean, explain_all
from tokenclean.recipe.pool_settings import SourceSettings
from tokenclean.recipe.settings import Recipe, TrainingSettings
from tokenclean.redaction import holds_secret

PRESETS = ("paper", "quick", "demo")


def load_recipe(path: Path | str, overrides: Iterable[str] = (), intake: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe file, or a preset by its name, and apply overrides such as ``training.epochs=2``.

    ``intake``: keys of SourceSettings that override those of every source. Relative pool paths in a file are taken from
    the current folder. Raises RecipeError listing every fault at once, unknown keys with a did-you-mean.
    """
    path = Path(path)
    if path.is_file():
        return recipe_from(_read_yaml(_read_text(path), str(path)), overrides, str(path), intake)
    if str(path) in PRESETS:
        return recipe_from({"preset": str(path)}, overrides, f"preset {path}", intake)
    raise RecipeError(f"no such recipe file; the presets are {', '.join(PRESETS)}", str(path))


def recipe_from(
    values: Mapping[str, object],
    overrides: Iterable[str] = (),
    source: str = "recipe",
    intake: Mapping[str, object] | None = None,
) -> Recipe:
    """Build a recipe from nested values and overrides, as ``load_recipe`` does from a file.

    ``values["preset"]`` names the preset that fills in the keys not given. ``source`` is what error messages call the
    recipe. Raises RecipeError.
    """
    merged = dict(values)
    problems: list[str] = []
    preset = merged.pop("preset", None)
    if preset in PRESETS:
        merged = _merge(_preset_values(str(preset)), merged)
    elif preset is not None:
        problems.append(f"preset: unknown preset {preset!r}{did_you_mean(str(preset), PRESETS)}")
    merged = _with_intake(_with_overrides(merged, overrides, problems), intake or {})
    recipe = None
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        problems += explain_all(error, Recipe)
    problems += [
        f"{key}: looks like a token or password; keys come from the environment only" for key in _secrets_in(merged)
    ]
    if recipe is None or problems:
        raise RecipeError(problems, source)
    return recipe


def training_from(values: Mapping[str, object], overrides: Iterable[str] = ()) -> TrainingSettings:
    """Training settings alone, from nested values and overrides such as ``training.epochs=2``.

    Raises RecipeError listing every fault.
    """
    overrides = list(overrides)
    problems = [
        f"--set {override}: expected a key of training, such as training.schedule=cosine"
        for override in overrides
        if not override.startswith("training.")
    ]
    recipe = _with_overrides({"training": values}, overrides, problems)
    if problems:
        raise RecipeError(problems, "options")
    try:
        return TrainingSettings.model_validate(recipe["training"])
    except ValidationError as error:
        raise RecipeError(explain_all(error, TrainingSettings), "training") from error


def source_from(values: Mapping[str, object]) -> SourceSettings:
    """One source of a pool, from its values. Raises RecipeError listing every fault."""
    try:
        return SourceSettings.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain_all(error, SourceSettings), "source") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read as UTF-8 text ({error})", str(path)) from error


def _read_yaml(text: str, source: str) -> dict[str, object]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-01
        raise RecipeError(f"not valid YAML: {' '.join(str(error).split())}", source) from error
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of sections (pool, model, cleaning, …)", source)
    return values


def _preset_values(preset: str) -> dict[str, object]:
    text = (resources.files("tokenclean") / "data" / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    return _read_yaml(text, f"preset {preset}")


def _secrets_in(value: object, path: str = "") -> Iterator[str]:
    """Paths of texts that contain a secret, which would end up in every manifest."""
    if isinstance(value, str) and holds_secret(value):
        yield path
    elif isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _secrets_in(inner, f"{path}.{key}" if path else str(key))


def _merge(under: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _with_intake(values: dict[str, object], intake: Mapping[str, object]) -> dict[str, object]:
    match values:
        case {"pool": {"sources": [*sources], **pool}} if intake:
            read = [_merge(source, intake) if isinstance(source, dict) else source for source in sources]
            return {**values, "pool": {**pool, "sources": read}}
    return values


def _with_overrides(values: Mapping[str, object], overrides: Iterable[str], problems: list[str]) -> dict[str, object]:
    """The values with overrides applied; faults of overrides are added to ``problems``."""
    values = dict(values)
    for override in overrides:
        try:
            values = _with_override(values, override)
        except ValueError as error:
            problems.append(f"--set {error}")
    return values


def _with_override(values: dict[str, object], override: str) -> dict[str, object]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override}: expected key=value, such as training.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{override}: the value is not valid YAML") from error
    path = key.split(".")
    return {**values, path[0]: _with_value(values.get(path[0]), path, 1, value)}


def _with_value(place: object, path: list[str], depth: int, value: object) -> object:
    """``place``, which is at this depth of the path, with the value at the path's end."""
    if depth == len(path):
        return value
    part = path[depth]
    where = ".".join(path[: depth + 1])
    if place is None:
        place = [] if part.isdecimal() else {}
    if isinstance(place, list | tuple):
        count = len(place)
        if not part.isdecimal() or int(part) > count:
            raise ValueError(f"{where}: this is a list of {count}; give an index from 0 to {count}")
        index = int(part)
        below = place[index] if index < count else None
        return [*place[:index], _with_value(below, path, depth + 1, value), *place[index + 1 :]]
    if isinstance(place, Mapping):
        return {**place, part: _with_value(place.get(part), path, depth + 1, value)}
    raise ValueError(f"{where}: {'.'.join(path[:depth])} is a value, not a section")
