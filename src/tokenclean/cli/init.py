"""``tokenclean init``: a commented recipe for data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from tokenclean.cli.console import say
from tokenclean.cli.recipe_options import RecipeRequest, takes_recipe
from tokenclean.errors import RecipeError
from tokenclean.recipe import is_recipe, short_yaml


@takes_recipe
def init(
    request: RecipeRequest,
    to: Annotated[
        Path | None, Option("--to", "-o", metavar="FILE", help="Where to write it; by default NAME.yaml here.")
    ] = None,
) -> None:
    """Write a recipe for your data, with a comment on every key that people change.

    Example: tokenclean init my.jsonl --model HuggingFaceTB/SmolLM2-135M
    """
    if any(map(is_recipe, request.data)):
        raise RecipeError(["init makes a recipe; give data files"], "options")
    recipe, preset = request.made_for_size() if request.names_model else request.made()
    path = to or Path(f"{recipe.name}.yaml")
    if path.exists():
        raise RecipeError([f"{path}: exists already; give another file with --to"], "options")
    heading = f"# Made for {' '.join(request.data)}. Run it: tokenclean run {path}\n"
    heading += "# All keys: docs/reference/recipe.md of tokenclean.\n"
    from tokenclean.store import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(heading + short_yaml(recipe, preset, commented=True), encoding="utf-8")
    say(f"wrote {path}")
    if not request.names_model:
        say(f"model.base is a placeholder, {recipe.model.base}: write your model there", "yellow")
    say(f"next: tokenclean run {path}")
