"""``tokenclean init``: a commented recipe for data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from tokenclean.cli.console import say
from tokenclean.cli.options import IntakeOptions, SetOption
from tokenclean.cli.recipe_from_data import (
    CleaningOptions,
    DataArgument,
    ModelOption,
    OutputOption,
    RecipeRequest,
    RowsOption,
    TrustedOption,
)
from tokenclean.cli.settings_options import takes_settings
from tokenclean.errors import RecipeError
from tokenclean.recipe import is_recipe, short_yaml


@takes_settings
def init(
    data: DataArgument,
    model: ModelOption = None,
    rows: RowsOption = None,
    trusted: TrustedOption = None,
    set_: SetOption = None,
    to: Annotated[
        Path | None, Option("--to", "-o", metavar="FILE", help="Where to write it; by default NAME.yaml here.")
    ] = None,
    *,
    cleaning: CleaningOptions,
    output: OutputOption,
    intake: IntakeOptions,
) -> None:
    """Write a recipe for your data, with a comment on every key that people change.

    Example: tokenclean init my.jsonl --model HuggingFaceTB/SmolLM2-135M
    """
    if any(map(is_recipe, data)):
        raise RecipeError(["init makes a recipe; give data files"], "options")
    request = RecipeRequest.of(data, model, rows, trusted, cleaning, output, set_, intake)
    recipe, preset = request.made_for_size() if request.names_model else request.made()
    path = to or Path(f"{recipe.name}.yaml")
    if path.exists():
        raise RecipeError([f"{path}: exists already; give another file with --to"], "options")
    heading = f"# Made for {' '.join(data)}. Run it: tokenclean run {path}\n# All keys: tokenclean's page on recipes.\n"
    from tokenclean.store import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(heading + short_yaml(recipe, preset, commented=True), encoding="utf-8")
    say(f"wrote {path}")
    if not request.names_model:
        say(f"model.base is a placeholder, {recipe.model.base}: write your model there", "yellow")
    say(f"next: tokenclean run {path}")
