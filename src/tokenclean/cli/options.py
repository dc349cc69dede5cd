"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tokenclean.cli.intake import HUB_PREFIX

DEFAULT_DATE = "2024-07-26"


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


ModelOption = Annotated[str, typer.Option(help="Hub id, folder, GGUF file, or PEFT adapter folder.")]
PoolArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="POOL...",
        help="Conversations: JSON lines, JSON or CSV (also .gz, .zst), Parquet, a save_to_disk folder, or "
        f"{HUB_PREFIX}org/name[@revision].",
    ),
]
TemplateOption = Annotated[Template, typer.Option(help="tulu (the paper's), or the tokenizer's own chat template.")]
TargetsOption = Annotated[
    Targets, typer.Option(help="Train every assistant turn, the last one only, or all tokens (plain text too).")
]
DateOption = Annotated[
    str,
    typer.Option(metavar="YYYY-MM-DD", help="The date to give a chat template that asks for today's."),
]
LengthOption = Annotated[int, typer.Option(min=2, help="Cut conversations at this many tokens.")]
RejectedShareOption = Annotated[
    float, typer.Option(min=0, max=1, help="Stop where a larger share of the rows cannot be used.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-remote-code", metavar="MODEL", help="Let this model run code from its own repository; repeatable."
    ),
]
