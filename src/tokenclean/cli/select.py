"""``tokenclean select``: the token labels of a scored table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from tokenclean.cli.console import say
from tokenclean.cli.options import SeedOption
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import RecipeError
from tokenclean.recipe import CleaningSettings


@takes_settings
def select(
    table: Annotated[Path, Argument(metavar="TABLE", help="A table with scores, from tokenclean score.")],
    output: Annotated[Path, Option("--output", "-o", help="The table to write.")] = Path("kept.parquet"),
    level: Annotated[
        Literal["global", "sample", "source", "random"],
        Option(help="Rank over the whole pool, within each sample (RHO) or source, or draw at random."),
    ] = "global",
    *,
    cleaning: Annotated[CleaningSettings, FromSettings(CleaningSettings, "proportion")],
    seed: SeedOption,
) -> None:
    """Keep the top share of response tokens by score: exactly int(n·k) of each group (Eq. 4).

    Example: tokenclean select scores.parquet --proportion 0.6 -o kept.parquet
    """
    if cleaning.proportion == "auto":
        raise RecipeError(
            "--proportion: expected a number; auto is chosen by a run's trials, which need models", "select"
        )
    from tokenclean.selection.select_table import select_table

    kept = select_table(table, output, proportion=cleaning.kept_proportion, level=level, seed=seed)
    say(
        f"{output}: {kept.kept_tokens.total():,} of {kept.response_tokens.total():,} response tokens kept, "
        f"{kept.emptied_rows:,} conversations left empty"
    )
    for name, tokens in sorted(kept.response_tokens.items()):
        say(f"  {name}: {kept.kept_tokens[name] / max(tokens, 1):.1%} of {tokens:,} tokens")
