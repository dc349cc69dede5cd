"""A recipe for data files: its preset chosen by the size of model and pool, its keys written with comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml

from tokenclean.recipe.base_settings import Section
from tokenclean.recipe.cleaning_settings import CleaningSettings
from tokenclean.recipe.pool_settings import HUB_PREFIX
from tokenclean.recipe.reading import PRESETS, recipe_from
from tokenclean.recipe.settings import Recipe
from tokenclean.recipe.strategies import find_strategy

DEFAULT_STRATEGY: Final = "auto"
"""Takes what its trials show to be better than full tokens, so that it leaves data without noise alone."""

PLACEHOLDER_MODEL: Final = "HuggingFaceTB/SmolLM2-135M"
LARGE_MODEL_PARAMETERS: Final = 1_000_000_000
_LARGE_POOL_ROWS: Final = 5_000
_FEW_ROWS: Final = {"batch_size": 16, "minimum_steps": 10}

_SHOWN: Final = (
    *("name", "seed", "output", "pool.sources", "pool.max_rows", "pool.heldout.rows", "tokens.template"),
    *("tokens.max_length", "model.base", "cleaning.strategy", "cleaning.proportion", "cleaning.splits"),
    *("cleaning.trusted", "training.learning_rate", "training.batch_size", "training.minimum_steps"),
    *("training.epochs", "training.precision", "evaluation.controls"),
)
"""The keys that a commented recipe writes out: those that people change."""

_ALWAYS: Final = ("pool.sources", "model.base")
_RANKING: Final = ("cleaning.proportion", "cleaning.splits")


def data_values(places: Sequence[str], *, parameters: int = 0, rows: int | None = None) -> dict[str, object]:
    """Values of a recipe for ``recipe_from``: clean these files (or Hub datasets) and compare with full tokens.

    The preset is ``paper`` for a model of at least a billion ``parameters``, in smaller batches for a pool below 5,000
    ``rows`` (None: unknown, taken as small), and ``quick`` for a smaller model. The model is a placeholder.
    """
    values: dict[str, object] = {
        "preset": "paper" if parameters >= LARGE_MODEL_PARAMETERS else "quick",
        "name": run_name(places[0]),
        "pool": {"sources": [{"path": place} for place in places]},
        "model": {"base": PLACEHOLDER_MODEL},
        "cleaning": {"strategy": DEFAULT_STRATEGY},
        "evaluation": {"controls": ["full_tokens"]},
    }
    if parameters >= LARGE_MODEL_PARAMETERS and (rows or 0) < _LARGE_POOL_ROWS:
        values["training"] = dict(_FEW_ROWS)
    return values


def run_name(place: str) -> str:
    """The name of the run on a file, folder or Hub dataset: ``my`` for ``data/my.jsonl.gz``."""
    name = place.removeprefix(HUB_PREFIX).partition("@")[0].rstrip("/\\")
    stem = re.split(r"[/\\]", name)[-1].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "run"


def is_recipe(place: str) -> bool:
    """Whether a command's argument is a recipe, not data: a YAML file, or the name of a preset."""
    return Path(place).suffix.lower() in (".yaml", ".yml") or (place in PRESETS and not Path(place).exists())


def short_yaml(recipe: Recipe, preset: str, *, commented: bool) -> str:
    """A recipe file for this recipe: what differs from its preset, and if ``commented`` also the keys that people
    change most, each with what it means."""
    plain = {"sources": [source.model_dump() for source in recipe.pool.sources]}
    unchanged = recipe_from({"preset": preset, "pool": plain, "model": {"base": recipe.model.base}})
    lines = [f"preset: {preset}", *_lines(recipe, unchanged, "", commented)]
    return "\n".join(lines) + "\n"


def _lines(section: Section, unchanged: Section, path: str, commented: bool) -> Iterator[str]:
    indent = "  " * path.count(".")
    for name, field in type(section).model_fields.items():
        key, value, before = f"{path}{name}", getattr(section, name), getattr(unchanged, name)
        if isinstance(value, Section) and isinstance(before, Section):
            lines = list(_lines(value, before, f"{key}.", commented))
            yield from (f"{indent}{name}:", *lines) if lines else ()
        elif key in _ALWAYS or (commented and key in _SHOWN) or value != before:
            if commented and field.description:
                comment = f"{indent}# "
                text = field.description.replace("``", "`")
                if key in _RANKING and isinstance(section, CleaningSettings):
                    tries_ranking = section.strategy == "auto" and section.trusted is not None
                    is_used = find_strategy(section.strategy).ranks or tries_ranking
                    text += "" if is_used else f" Of no effect with {section.strategy}."
                yield from textwrap.wrap(text, 100, initial_indent=comment, subsequent_indent=comment)
            only_set = isinstance(value, Section | tuple)
            written = section.model_dump(mode="json", include={name}, exclude_defaults=only_set)[name]
            text = yaml.safe_dump(written, allow_unicode=True, sort_keys=False, default_flow_style=True, width=1000)
            yield f"{indent}{name}: {text.removesuffix('...' + chr(10)).rstrip()}"
