"""``tokenclean score``: losses and scores of a pool, as one Parquet table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.options import (
    ColumnOption,
    DeviceOption,
    Format,
    FormatOption,
    LengthOption,
    ModelOption,
    PoolArgument,
    Precision,
    SplitOption,
    Targets,
    TargetsOption,
    Template,
    TemplateOption,
    TrustOption,
    sources_of,
)
from tokenclean.ragged import Ragged

if TYPE_CHECKING:
    from tokenclean.store import Stage


def score(
    pool: PoolArgument,
    base: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path("scores.parquet"),
    reference: Annotated[
        str | None, typer.Option(help="Reference model; without it only base losses are computed.")
    ] = None,
    format: FormatOption = Format.auto,
    column: ColumnOption = None,
    split: SplitOption = None,
    max_rejected_share: Annotated[
        float, typer.Option(min=0, max=1, help="Stop where a larger share of the rows cannot be used.")
    ] = 0.05,
    template: TemplateOption = Template.tulu,
    max_length: LengthOption = 2048,
    targets: TargetsOption = Targets.response,
    precision: Annotated[
        Precision, typer.Option(help="exact: float32; safe: bf16 inside products; fast: bf16 products.")
    ] = Precision.safe,
    pack_tokens: Annotated[int, typer.Option(min=1, help="Tokens in one forward pass.")] = 4096,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a shard, the most that a stopped pass loses.")] = 1
    << 18,
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = None,
) -> None:
    """Compute the loss of every response token under base and reference, and their difference, the score.

    The table has one row a conversation and per-token columns: input_ids, is_response, base_loss and, with
    --reference, reference_loss and score = base_loss − reference_loss (nats; NaN off the response).

    Losses are written in shards as they are done, beside the table; a stopped command, given again, goes on from there.

    Example: tokenclean score my.jsonl --base HuggingFaceTB/SmolLM2-135M --reference runs/warm-up -o scores.parquet
    """
    from tokenclean.pool import check_rejected_share, load_sources, write_rejected

    listing = output.with_suffix(".rejected.jsonl")
    conversations = load_sources(sources_of(pool, format, column, split))  # before the seconds that torch takes to load
    count_rows = len(conversations) + len(conversations.rejected)
    check_rejected_share(conversations.rejected, count_rows, max_rejected_share, listing)

    from tokenclean.cleaning.rows import sample_texts
    from tokenclean.cleaning.workshop import resolve_device
    from tokenclean.models.load import load_model, load_tokenizer, resolve_source, source_fingerprint
    from tokenclean.models.tokenizer_identity import check_same_tokenizer
    from tokenclean.scoring.shards import LOSSES_VERSION, sharded_losses
    from tokenclean.store import Store
    from tokenclean.tokens import TokenTable, tokenize_pool, write_table

    quiet_libraries()
    device = resolve_device(device)
    trusted = tuple(trust_remote_code or ())
    base_source = resolve_source(base, trusted=trusted)
    tokenizer = load_tokenizer(base_source)
    options: dict[str, Any] = {"template": template.value, "max_length": max_length, "targets": targets.value}
    tokens = tokenize_pool(conversations, tokenizer, **options)
    rejected = (*conversations.rejected, *tokens.unusable)
    check_rejected_share(rejected, count_rows, max_rejected_share, listing)
    if rejected:
        write_rejected(rejected, listing)
        note(f"{len(rejected)} rows set aside, listed in {listing}")
    sources = {"base": base_source}
    if reference is not None:
        sources["reference"] = resolve_source(reference, trusted=trusted)
        texts = sample_texts(conversations, tokenizer, template.value)
        for difference in check_same_tokenizer(tokenizer, load_tokenizer(sources["reference"]), texts):
            note(f"reference: {difference} (allowed: text is rendered with the base's)")
    fingerprints = {name: source_fingerprint(source) for name, source in sources.items()}
    store = Store(output.with_suffix(".shards"), note=note)
    stages = []

    def make_stage(inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Stage:
        stages.append(store.stage("losses", LOSSES_VERSION, inputs, make))
        return stages[-1]

    columns = {}
    with store.lock():
        for name, source in sources.items():
            columns[f"{name}_loss"] = sharded_losses(
                make_stage,
                lru_cache(maxsize=1)(partial(load_model, source, device=device)),
                tokens,
                {"model": [fingerprints[name], ""], "device": device.partition(":")[0]},
                what=f"under {name}",
                shard_tokens=shard_tokens,
                progress=progress(f"score with {name}", "token"),
                precision=precision.value,
                pack_tokens=pack_tokens,
            )
    if reference is not None:
        columns["score"] = columns["base_loss"] - columns["reference_loss"]
    metadata = {
        **options,
        "precision": precision.value,
        "pack_tokens": pack_tokens,
        "models": {
            name: {"name": str(s), "revision": s.revision, "fingerprint": fingerprints[name]}
            for name, s in sources.items()
        },
    }
    write_table(TokenTable.of_tokens(tokens, metadata, **columns), output)
    count = int(tokens.is_response.values.sum())
    made = sum(not stage.was_reused for stage in stages)
    out.print(f"{output}: {len(tokens):,} conversations, {count:,} response tokens", soft_wrap=True)
    out.print(f"  {made} shards computed, {len(stages) - made} found in {store.root}", soft_wrap=True)
    for name, losses in columns.items():
        out.print(f"  mean {name} {_mean(losses):.4f} nats")


def _mean(losses: Ragged) -> float:
    import numpy as np

    return float(np.nanmean(losses.values))
