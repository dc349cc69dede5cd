"""``tokenclean inspect``: see which tokens are targets, or which were kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.text import Text

from tokenclean.cli.console import out, quiet_libraries
from tokenclean.cli.options import (
    ColumnOption,
    Format,
    FormatOption,
    LengthOption,
    SplitOption,
    Targets,
    TargetsOption,
    Template,
    TemplateOption,
    TrustOption,
    sources_of,
)
from tokenclean.errors import TableError

STYLES = {"prompt": "dim", "target": "bold green", "kept": "bold green", "dropped": "red strike"}
PLAIN = {"prompt": ("", ""), "target": ("⟦", "⟧"), "kept": ("⟦", "⟧"), "dropped": ("~", "~")}


def inspect(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A pool, in any form that score takes, or a table with is_kept.")
    ],
    model: Annotated[str, typer.Option(help="Model whose tokenizer (and chat template) to use.")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many samples to print.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="The first row to print, from 0.")] = 0,
    format: FormatOption = Format.auto,
    column: ColumnOption = None,
    split: SplitOption = None,
    template: TemplateOption = Template.tulu,
    max_length: LengthOption = 2048,
    targets: TargetsOption = Targets.response,
    trust_remote_code: TrustOption = None,
) -> None:
    """Print samples as the model sees them, with the training targets coloured (or kept and dropped tokens of a table).

    Piped, targets and kept tokens stand in ⟦ ⟧ and dropped ones between tildes.

    Example: tokenclean inspect my.jsonl --model HuggingFaceTB/SmolLM2-135M --rows 2
    """
    from tokenclean.models.loading.load import load_tokenizer, resolve_source
    from tokenclean.pool import load_sources
    from tokenclean.tokens import is_table, read_table, tokenize_pool

    quiet_libraries()
    tokenizer = load_tokenizer(resolve_source(model, trusted=tuple(trust_remote_code or ())))
    if is_table(data):
        table = read_table(data)
        ids, is_response, names = table["input_ids"], table["is_response"], table.ids
        is_kept = table.columns.get("is_kept")
        rejected = ()
    else:
        pool = load_sources(sources_of([data], format, column, split))
        tokens = tokenize_pool(pool, tokenizer, template=template.value, max_length=max_length, targets=targets.value)
        ids, is_response, is_kept, names = tokens.input_ids, tokens.is_response, None, tokens.ids
        rejected = (*pool.rejected, *tokens.unusable)
    if start >= len(ids):
        raise TableError(f"{data}: --start {start}, but it has {len(ids)} rows")
    for row in range(start, min(start + rows, len(ids))):
        labels = is_response[row]
        if is_kept is None:
            kinds = ["target" if label else "prompt" for label in labels]
        else:
            kinds = [
                "prompt" if not label else "kept" if kept else "dropped"
                for label, kept in zip(labels, is_kept[row], strict=True)
            ]
        counted = f"{int(labels.sum())} targets" + (f", {int(is_kept[row].sum())} kept" if is_kept is not None else "")
        heading = f"{names[row]}  {len(labels)} tokens, {counted}"
        if out.is_terminal:
            out.rule(heading, align="left")
        else:
            out.print(heading, soft_wrap=True)
        out.print(_coloured(tokenizer, ids[row].tolist(), kinds), soft_wrap=True)
    for fault in rejected[:rows]:
        out.print(f"set aside: {fault}", style="yellow", soft_wrap=True)
    if len(rejected) > rows:
        out.print(f"and {len(rejected) - rows:,} more rows set aside")


def _coloured(tokenizer, ids: Sequence[int], kinds: Sequence[str]) -> Text:
    text = Text()
    for kind, run in _runs(ids, kinds):
        decoded = tokenizer.decode(run)
        before, after = ("", "") if out.is_terminal else PLAIN[kind]
        text.append(f"{before}{decoded}{after}", style=STYLES[kind] if out.is_terminal else None)
    return text


def _runs(ids: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Runs of one kind, decoded together so that a character split over tokens stays whole."""
    run: list[int] = []
    for position, (token, kind) in enumerate(zip(ids, kinds, strict=True)):
        run.append(token)
        if position + 1 == len(ids) or kinds[position + 1] != kind:
            yield kind, run
            run = []
