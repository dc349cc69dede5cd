"""``tokenclean pool``: a recipe's pool, built and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from tokenclean.cli.console import note, progress, quiet_libraries, say, say_tables
from tokenclean.cli.options import IntakeOptions, RecipeArgument, SetOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.recipe import load_recipe


@takes_settings
def pool(
    recipe: RecipeArgument,
    output: Annotated[Path, Option("--output", "-o", help="Folder to write, which must be new.")],
    set_: SetOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Build a recipe's pool: read its sources, filter, compare with benchmarks, deduplicate, draw, count.

    Writes the rows as JSON lines that every command reads, the rows left out with their reasons, and the paper's
    Table 4. Nothing is trained or scored; a run with the same recipe builds the same pool itself.

    Example: tokenclean pool recipes/five-sources.yaml -o five-sources
    """
    loaded = load_recipe(recipe, set_ or (), intake)

    from tokenclean.experiment.pool_folder import build_pool

    quiet_libraries()
    built = build_pool(loaded, output, note=note, progress=progress)
    say_tables(built.tables)
    say(f"pool: {built.folder} ({built.rows:,} rows in pool.jsonl)")
    for name, count in built.mixture.removed_by_filter.items():
        say(f"  {count:,} left out: {name.replace('_', ' ')} (removed.jsonl)")
    for line in built.intake.lines():
        say(f"  {line}")
