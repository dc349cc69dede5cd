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
    from tokenclean.selection import lowest_kept, select_tokens
    from tokenclean.tokens import read_table, write_table

    if not 0 < proportion <= 1:
        raise RecipeError(f"--proportion: expected a share above 0 and at most 1, found {proportion:g}", "select")
    scored = read_table(table)
    scores = None if level is Level.random else scored["score"]
    kept = select_tokens(
        scores, scored["is_response"], proportion=proportion, level=level.value, sources=scored.sources, seed=seed
    )
    selection = {"proportion": proportion, "level": level.value, "threshold": lowest_kept(scores, kept)}
    selection |= {"seed": seed} if level is Level.random else {}
    write_table(scored.with_columns({"selection": selection}, is_kept=kept), output)
    total, count = int(scored["is_response"].values.sum()), int(kept.values.sum())
    empty = int(((scored["is_response"].row_sums() > 0) & (kept.row_sums() == 0)).sum())
    out.print(
        f"{output}: {count:,} of {total:,} response tokens kept, {empty:,} conversations left empty", soft_wrap=True
    )
    kept_sums, sums = kept.row_sums(), scored["is_response"].row_sums()
    for source in sorted(set(scored.sources)):
        rows = [i for i, s in enumerate(scored.sources) if s == source]
        of_source = sums[rows].sum()
        share = kept_sums[rows].sum() / of_source if of_source else 0.0
        out.print(f"  {source}: {share:.1%} of {int(of_source):,} tokens")
