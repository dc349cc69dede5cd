"""``tokenclean merge``: a plain model of an adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenclean.cli.console import err, out, quiet_libraries
from tokenclean.cli.options import Template, TrustOption

if TYPE_CHECKING:
    from tokenclean.models.merging import Merge

_LARGE_ROUNDING = 0.1


class MergedDtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


def merge(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A PEFT adapter (folder or Hub id), a run folder, a results folder, or a whole model."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; by default MODEL's name and -merged.")
    ] = None,
    dtype: Annotated[
        MergedDtype, typer.Option(help="Of the written weights; the sum itself is computed in float32.")
    ] = MergedDtype.float32,
    strategy: Annotated[
        str | None, typer.Option(help="Which of a run's strategies; by default the recipe's own.")
    ] = None,
    template: Annotated[
        Template | None, typer.Option(help="Chat template to write; by default the one it was trained with.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Use this base in place of the one that the adapter names.")] = None,
    trust_remote_code: TrustOption = None,
) -> None:
    """Write an adapter on its base as a plain model for transformers and vLLM: weights, tokenizer, chat template.

    Every weight is merged in float32 and rounded last. bfloat16 may round much of a short training away; how
    large that rounding is beside the adapter's change is printed.

    Example: tokenclean merge runs/quick --dtype bfloat16 -o merged
    """
    from tokenclean.experiment.finished.merge import find_model, merge_model

    quiet_libraries()
    folder = output or Path(f"{Path(model).name}-merged")
    found = find_model(model, strategy)
    given = None if template is None else template.value
    source, used, merged = merge_model(
        found, folder, dtype.value, template=given, base=base, trusted=tuple(trust_remote_code or ())
    )
    out.print(f"{folder}: {source} in {dtype.value}, chat template {used}", soft_wrap=True)
    print_merge(merged, dtype)


def print_merge(merged: Merge, dtype: MergedDtype) -> None:
    """What was merged, and what rounding lost of it."""
    if not merged.tensors:
        return
    text = f"  {merged.tensors} weights merged in float32"
    if dtype is MergedDtype.bfloat16:
        text += f"; rounding to bfloat16 is {merged.rounding_share:.1%} as large as the adapter's change"
    out.print(text, soft_wrap=True)
    if merged.is_untied:
        out.print("  embeddings and output layer, one weight in the base, are written as two: the adapter parts them")
    if merged.rounding_share > _LARGE_ROUNDING:
        err.print(
            "warning: bfloat16 rounds away much of what the adapter changed; use --dtype float32, or serve the adapter "
            "as it is",
            style="yellow",
            soft_wrap=True,
        )
