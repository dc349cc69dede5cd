"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tokenclean.errors import RecipeError
from tokenclean.recipe import SourceSettings, source_from

HUB_PREFIX = "hf://datasets/"


class Precision(StrEnum):
    exact = "exact"
    safe = "safe"
    fast = "fast"


class Compile(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class Template(StrEnum):
    tulu = "tulu"
    tokenizer = "tokenizer"


class Targets(StrEnum):
    response = "response"
    last_turn = "last_turn"
    all_ = "all"


class Format(StrEnum):
    auto = "auto"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    text = "text"
    tokens = "tokens"


ModelOption = Annotated[str, typer.Option(help="Hub id, folder, GGUF file, or PEFT adapter folder.")]
PoolArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="POOL...",
        help="Conversations: JSON lines, JSON or CSV (also .gz, .zst), Parquet, a save_to_disk folder, or "
        f"{HUB_PREFIX}org/name[@revision].",
    ),
]
FormatOption = Annotated[Format, typer.Option(help="Form of the rows; auto detects it row by row.")]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Column map, such as instruction=question; repeatable."),
]
SplitOption = Annotated[str | None, typer.Option(help="Split of a Hub dataset or save_to_disk folder.")]
TemplateOption = Annotated[Template, typer.Option(help="tulu (the paper's), or the tokenizer's own chat template.")]
TargetsOption = Annotated[
    Targets, typer.Option(help="Train every assistant turn, the last one only, or all tokens (plain text too).")
]
LengthOption = Annotated[int, typer.Option(min=2, help="Cut conversations at this many tokens.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-remote-code", metavar="MODEL", help="Let this model run code from its own repository; repeatable."
    ),
]


def sources_of(pool: list[str], format: Format, columns: list[str] | None, split: str | None) -> list[SourceSettings]:
    """The sources that a command's arguments name. Raises RecipeError listing what is wrong."""
    mapped: dict[str, str] = {}
    for column in columns or []:
        ours, equals, theirs = column.partition("=")
        if not (equals and ours and theirs):
            raise RecipeError(f"--column {column}: expected OURS=THEIRS, such as instruction=question", "options")
        mapped[ours] = theirs
    options = {"format": format.value, "columns": mapped, "split": split}
    return [source_from(_place(place) | options) for place in pool]


def _place(place: str) -> dict[str, str | None]:
    if not place.startswith(HUB_PREFIX):
        return {"path": place}
    name, _, revision = place.removeprefix(HUB_PREFIX).partition("@")
    return {"hub": name, "revision": revision or None}
