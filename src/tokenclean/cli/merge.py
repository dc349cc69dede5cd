"""``tokenclean merge``: a plain model of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from tokenclean.cli.console import err, quiet_libraries, say
from tokenclean.cli.options import StrategyOption, TrustOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.recipe import Template

if TYPE_CHECKING:
    from tokenclean.models.merging import Merge

_LARGE_ROUNDING = 0.1

MergedDtype = Literal["float32", "bfloat16"]


@takes_settings
def merge(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL", help="A PEFT adapter (folder or Hub id), a run folder, a results folder, or a whole model."
        ),
    ],
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder to write; by default MODEL's name and -merged.")
    ] = None,
    dtype: Annotated[
        MergedDtype, Option(help="Type of the written weights; the sum itself is computed in float32.")
    ] = "float32",
    strategy: StrategyOption = None,
    template: Annotated[
        Template | None, Option(help="Chat template to write; by default the one it was trained with.")
    ] = None,
    base: Annotated[str | None, Option(help="Use this base instead of the one that the adapter names.")] = None,
    *,
    trust_remote_code: TrustOption,
) -> None:
    """Write an adapter on its base as a plain model for transformers and vLLM: weights, tokenizer, chat template.

    Every weight is merged in float32 and rounded last. bfloat16 may round away much of a short training; the size of
    that rounding, compared with the adapter's change, is printed.

    Example: tokenclean merge runs/quick --dtype bfloat16 -o merged
    """
    from tokenclean.experiment.finished.merge import find_model, merge_model

    quiet_libraries()
    folder = output or Path(f"{Path(model).name}-merged")
    found = find_model(model, strategy)
    source, used, merged = merge_model(found, folder, dtype, template=template, base=base, trusted=trust_remote_code)
    say(f"{folder}: {source} in {dtype}, chat template {used}")
    print_merge(merged, dtype)


def print_merge(merged: Merge, dtype: MergedDtype) -> None:
    """Print what was merged, and how much rounding lost."""
    if not merged.tensors:
        return
    text = f"  {merged.tensors} weights merged in float32"
    if dtype == "bfloat16":
        text += f"; rounding to bfloat16 is {merged.rounding_share:.1%} as large as the adapter's change"
    say(text)
    if merged.is_untied:
        say("  embeddings and output layer, one weight in the base, are written as two: the adapter makes them differ")
    if merged.rounding_share > _LARGE_ROUNDING:
        err.print(
            "warning: bfloat16 rounds away much of what the adapter changed; use --dtype float32, or serve the adapter "
            "itself",
            style="yellow",
            soft_wrap=True,
        )
