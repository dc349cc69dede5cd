"""``tokenclean select``: the token labels of a scored table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenclean.cli.console import out
from tokenclean.errors import RecipeError


class Level(StrEnum):
    global_ = "global"
    sample = "sample"
    source = "source"
    random = "random"


def select(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table with scores, from tokenclean score.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path("kept.parquet"),
    proportion: Annotated[float, typer.Option("--proportion", "-k", help="Share of response tokens to keep.")] = 0.6,
    level: Annotated[
        Level, typer.Option(help="Rank over the whole pool, within each sample (RHO) or source, or draw at random.")
    ] = Level.global_,
    seed: Annotated[int, typer.Option(help="For --level random.")] = 42,
) -> None:
    """Keep the top share of response tokens by score: exactly int(n·k) of each group (Eq. 4).

    Example: tokenclean select scores.parquet --proportion 0.6 -o kept.parquet
    """
    from tokenclean.selection.select_table import select_table

    if not 0 < proportion <= 1:
        raise RecipeError(f"--proportion: expected a share above 0 and at most 1, found {proportion:g}", "select")
    kept = select_table(table, output, proportion=proportion, level=level.value, seed=seed)
    out.print(
        f"{output}: {kept.kept_tokens:,} of {kept.response_tokens:,} response tokens kept, "
        f"{kept.emptied_rows:,} conversations left empty",
        soft_wrap=True,
    )
    for name, source in kept.sources.items():
        out.print(f"  {name}: {source.kept_share:.1%} of {source.response_tokens:,} tokens")
