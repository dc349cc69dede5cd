"""``tokenclean pool``: a recipe's pool, mixed and written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.intake import IntakeOptions, takes_intake
from tokenclean.cli.run import RecipeArgument, SetOption
from tokenclean.recipe import load_recipe


@takes_intake
def pool(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, which must be new.")],
    set_: SetOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Build a recipe's pool: read its sources, filter, compare with benchmarks, deduplicate, draw, count.

    Writes the rows as JSON lines that every command reads, those left out with their reasons, and the paper's Table 4.
    Nothing is trained or scored; a run with the same recipe opens the same pool by itself.

    Example: tokenclean pool recipes/five-sources.yaml -o five-sources
    """
    loaded = load_recipe(recipe, list(set_ or []), intake)

    from tokenclean.experiment.pool_folder import build_pool

    quiet_libraries()
    built = build_pool(loaded, output, note=note, progress=progress)
    for table in built.tables:
        out.print(table.to_rich())
        out.print()
    out.print(f"pool: {built.folder} ({built.rows:,} rows in pool.jsonl)", soft_wrap=True)
    for name, count in built.mixture.removed_by_filter.items():
        out.print(f"  {count:,} left out: {name.replace('_', ' ')} (removed.jsonl)", soft_wrap=True)
    for line in built.intake.lines():
        out.print(f"  {line}", soft_wrap=True)
