"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from typer import Argument, Option

from tokenclean.cli.completion import complete_override, complete_recipe, complete_strategy
from tokenclean.cli.settings_options import FromSettings
from tokenclean.recipe import ExecutorSettings, ModelSettings, PoolSettings, Recipe, SourceSettings, TokensSettings

_READING = "Reading the data"
_TOKENS = "From text to tokens"
EXECUTOR_PANEL = "Who computes"

RecipeArgument = Annotated[
    str,
    Argument(
        metavar="RECIPE", help="A recipe file, or a preset by name: paper, quick, demo.", autocompletion=complete_recipe
    ),
]
SetOption = Annotated[
    list[str] | None,
    Option(
        *("--set", "-s"),
        metavar="KEY=VALUE",
        help="Override a recipe key, such as training.epochs=2; repeatable.",
        autocompletion=complete_override,
    ),
]
PoolArgument = Annotated[
    list[str],
    Argument(
        metavar="POOL...",
        help="Conversations: JSON lines, JSON or CSV (also .gz, .zst), Parquet, a save_to_disk folder, or "
        "hf://datasets/org/name[@revision].",
    ),
]
StrategyOption = Annotated[
    str | None,
    Option(help="Which of a run's strategies; by default the recipe's own.", autocompletion=complete_strategy),
]
TokenizerOption = Annotated[
    str | None, Option(help="Model whose tokenizer to use; by default the base that the run or table names.")
]
IntakeOptions = Annotated[
    Mapping[str, object],
    FromSettings(
        SourceSettings,
        *("format", "columns", "roles", "split", "delimiter", "encoding", "ignore", "preferences"),
        *("python_literals", "repair_thoughts"),
        panel=_READING,
    ),
]
RejectedShareOption = Annotated[float, FromSettings(PoolSettings, "max_rejected_share", panel=_READING)]
TokensOptions = Annotated[
    TokensSettings, FromSettings(TokensSettings, "template", "max_length", "date", "targets", panel=_TOKENS)
]
AuditTokensOptions = Annotated[
    TokensSettings, FromSettings(TokensSettings, "template", "max_length", "date", panel=_TOKENS)
]
BaseOption = Annotated[str, FromSettings(ModelSettings, "base")]
DeviceOption = Annotated[str, FromSettings(ModelSettings, "device")]
TrustOption = Annotated[tuple[str, ...], FromSettings(ModelSettings, "trust_remote_code")]
ExecutorOptions = Annotated[ExecutorSettings, FromSettings(ExecutorSettings, panel=EXECUTOR_PANEL)]
SeedOption = Annotated[int, FromSettings(Recipe, "seed")]
