"""``tokenclean score``, ``select`` and ``train``: each stage alone, handing on one Parquet table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.errors import RecipeError, TableError


class Precision(StrEnum):
    exact = "exact"
    safe = "safe"
    fast = "fast"


class Template(StrEnum):
    tulu = "tulu"
    tokenizer = "tokenizer"


class Level(StrEnum):
    global_ = "global"
    sample = "sample"
    source = "source"
    random = "random"


class Format(StrEnum):
    auto = "auto"
    messages = "messages"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"


class Method(StrEnum):
    lora = "lora"
    full = "full"


ModelOption = Annotated[str, typer.Option(help="Hub id, folder, GGUF file, or PEFT adapter folder.")]
PoolArgument = Annotated[list[Path], typer.Argument(metavar="POOL...", help="JSON-lines files of conversations.")]
FormatOption = Annotated[Format, typer.Option(help="Form of the rows; auto detects it row by row.")]
TemplateOption = Annotated[Template, typer.Option(help="tulu (the paper's), or the tokenizer's own chat template.")]
LengthOption = Annotated[int, typer.Option(min=2, help="Cut conversations at this many tokens.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, … or auto.")]


def score(
    pool: PoolArgument,
    base: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path("scores.parquet"),
    reference: Annotated[
        str | None, typer.Option(help="Reference model; without it only base losses are computed.")
    ] = None,
    format: FormatOption = Format.auto,
    template: TemplateOption = Template.tulu,
    max_length: LengthOption = 2048,
    precision: Annotated[
        Precision, typer.Option(help="exact: float32; safe: bf16 inside products; fast: bf16 products.")
    ] = Precision.safe,
    pack_tokens: Annotated[int, typer.Option(min=1, help="Tokens in one forward pass.")] = 4096,
    device: DeviceOption = "auto",
) -> None:
    """Compute the loss of every response token under base and reference, and their difference, the score.

    The table has one row a conversation and per-token columns: input_ids, is_response, base_loss and, with
    --reference, reference_loss and score = base_loss − reference_loss (nats; NaN off the response).

    Example: tokenclean score my.jsonl --base HuggingFaceTB/SmolLM2-135M --reference runs/warm-up -o scores.parquet
    """
    from tokenclean.pool import load_pool, write_rejected

    conversations = load_pool(pool, format=format.value)  # before the seconds that torch takes to load

    from tokenclean.cleaning.workshop import resolve_device
    from tokenclean.models.load import load_model, load_tokenizer, resolve_source, source_fingerprint
    from tokenclean.models.tokenizer_identity import check_same_tokenizer
    from tokenclean.scoring import token_losses
    from tokenclean.tokens import TokenTable, render, tokenize_pool, write_table

    quiet_libraries()
    device = resolve_device(device)
    base_source = resolve_source(base)
    tokenizer = load_tokenizer(base_source)
    tokens = tokenize_pool(conversations, tokenizer, template=template.value, max_length=max_length)
    sources = {"base": base_source}
    if reference is not None:
        sources["reference"] = resolve_source(reference)
        texts = [render(c, tokenizer, template.value).text for c in conversations.conversations[:200]]
        for difference in check_same_tokenizer(tokenizer, load_tokenizer(sources["reference"]), texts):
            note(f"reference: {difference} (allowed: text is rendered with the base's)")
    rejected = (*conversations.rejected, *tokens.unusable)
    if rejected:
        place = output.with_suffix(".rejected.jsonl")
        write_rejected(rejected, place)
        note(f"{len(rejected)} rows set aside, listed in {place}; the first: {rejected[0]}")
    columns = {}
    for name, source in sources.items():
        model = load_model(source, device=device)
        columns[f"{name}_loss"] = token_losses(
            model,
            tokens,
            precision=precision.value,
            pack_tokens=pack_tokens,
            progress=progress(f"score with {name}", "token"),
        )
    if reference is not None:
        columns["score"] = columns["base_loss"] - columns["reference_loss"]
    metadata = {
        "template": template.value,
        "max_length": max_length,
        "precision": precision.value,
        "pack_tokens": pack_tokens,
        "models": {name: {"name": str(s), "fingerprint": source_fingerprint(s)} for name, s in sources.items()},
    }
    write_table(TokenTable.of_tokens(tokens, metadata, **columns), output)
    count = int(tokens.is_response.values.sum())
    out.print(f"{output}: {len(tokens):,} conversations, {count:,} response tokens", soft_wrap=True)
    for name, column in columns.items():
        out.print(f"  mean {name} {_mean(column):.4f} nats")


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
    from tokenclean.selection import select_tokens
    from tokenclean.tokens import read_table, write_table

    if not 0 < proportion <= 1:
        raise RecipeError(f"--proportion: expected a share above 0 and at most 1, found {proportion:g}", "select")
    scored = read_table(table)
    scores = None if level is Level.random else scored["score"]
    kept = select_tokens(
        scores, scored["is_response"], proportion=proportion, level=level.value, sources=scored.sources, seed=seed
    )
    selection = {"proportion": proportion, "level": level.value} | ({"seed": seed} if level is Level.random else {})
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


def train(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A table with is_kept or weight; else all of the response.")
    ],
    base: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trained model or adapter.")] = Path(
        "model"
    ),
    method: Annotated[Method, typer.Option(help="LoRA adapter, or all weights.")] = Method.lora,
    learning_rate: Annotated[float, typer.Option(min=1e-12)] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Conversations an optimizer step.")] = 48,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank; alpha is 16.")] = 64,
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="LoRA dropout.")] = 0.1,
    warmup_ratio: Annotated[float, typer.Option(min=0, max=0.99)] = 0.03,
    loss_normalisation: Annotated[
        str, typer.Option(help="token: one mean over the batch's tokens (Eq. 1); sample: mean of samples' means.")
    ] = "token",
    eval_rows: Annotated[int, typer.Option(min=0, help="Set rows aside and print their loss after each epoch.")] = 0,
    precision: Annotated[Precision, typer.Option()] = Precision.safe,
    seed: Annotated[int, typer.Option(min=0)] = 42,
    device: DeviceOption = "auto",
) -> None:
    """Fine-tune on the kept tokens of a table: float weights in `weight`, else `is_kept`, else every response token.

    Example: tokenclean train kept.parquet --base HuggingFaceTB/SmolLM2-135M -o model
    """
    import numpy as np

    from tokenclean.cleaning.workshop import resolve_device
    from tokenclean.models.load import resolve_source
    from tokenclean.recipe import training_from
    from tokenclean.tokens import read_table
    from tokenclean.training.trainer import train as fine_tune

    settings = training_from(
        {
            "method": method.value,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "epochs": epochs,
            "lora": {"rank": rank, "dropout": dropout},
            "warmup_ratio": warmup_ratio,
            "loss_normalisation": loss_normalisation,
            "eval_rows": eval_rows,
            "precision": precision.value,
        }
    )
    selected = read_table(table)
    column = next(name for name in ("weight", "is_kept", "is_response") if name in selected.columns)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise TableError(f"{output}: already there and not empty; name another --output")
    quiet_libraries()
    result = fine_tune(
        resolve_source(base),
        selected["input_ids"],
        selected[column].map_values(lambda values: values.astype(np.float32)),
        settings,
        output,
        seed=seed,
        device=resolve_device(device),
        progress=progress("train", "step"),
    )
    out.print(
        f"{output}: {result.steps} optimizer steps on {result.selected_tokens:,} tokens ({column})", soft_wrap=True
    )
    out.print(f"  {result.trained_rows:,} rows trained, {result.dropped_rows:,} without a selected token dropped")
    out.print(f"  batch loss {result.losses[0]:.4f} at the first step, {result.losses[-1]:.4f} at the last")
    for epoch, loss in enumerate(result.eval_losses, start=1):
        out.print(f"  epoch {epoch}: loss {loss:.4f} on the {result.eval_rows} rows set aside")


def _mean(column) -> float:
    import numpy as np

    return float(np.nanmean(column.values))
