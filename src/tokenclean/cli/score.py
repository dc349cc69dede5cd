"""``tokenclean score``: losses and scores of a pool, as one Parquet table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from tokenclean.cli.console import note, progress, quiet_libraries, say
from tokenclean.cli.distributed import sharing
from tokenclean.cli.intake import print_intake, sources_of
from tokenclean.cli.options import (
    BaseOption,
    DeviceOption,
    IntakeOptions,
    PoolArgument,
    RejectedShareOption,
    TokensOptions,
    TrustOption,
)
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import RecipeError
from tokenclean.observer import Observer
from tokenclean.recipe import ScoringSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenclean.models.loading.load import ModelSource
    from tokenclean.recipe import SourceSettings
    from tokenclean.scoring.pool_pass import PassOutcome

_COMPARED_ROWS = 200


@takes_settings
def score(
    pool: PoolArgument,
    base: BaseOption,
    output: Annotated[Path, Option("--output", "-o", help="The table to write.")] = Path("scores.parquet"),
    reference: Annotated[str | None, Option(help="Reference model; without it only base losses are computed.")] = None,
    columns: Annotated[
        list[str] | None,
        Option(
            metavar="NAMES",
            help="Further columns of each model, for each response token: entropy, is_top1, probability, collision; "
            "repeatable, or with commas.",
        ),
    ] = None,
    compile: Annotated[
        Literal["auto", "on", "off"],
        Option(help="Compile the layers; auto does so where the pool is large enough for it to pay."),
    ] = "auto",
    shard_characters: Annotated[
        int, Option(min=1, help="Characters of text in a shard, the most work that a stopped pass loses.")
    ] = 1 << 20,
    *,
    tokens: TokensOptions,
    scoring: Annotated[ScoringSettings, FromSettings(ScoringSettings, "precision", "pack_tokens")],
    device: DeviceOption,
    trust_remote_code: TrustOption,
    max_rejected_share: RejectedShareOption,
    intake: IntakeOptions,
) -> None:
    """Compute the loss of every response token under base and reference, and their difference, the score.

    The table has one row per conversation and per-token columns: input_ids, is_response, base_loss and, with
    --reference, reference_loss and score = base_loss − reference_loss (nats; NaN outside the response).

    The pool may be larger than memory. Tokens and losses are written shard by shard beside the table; a stopped
    command, given again, continues from there. Started by torchrun or accelerate launch, the processes share the
    shards.

    Example: tokenclean score my.jsonl --base HuggingFaceTB/SmolLM2-135M --reference runs/warm-up -o scores.parquet
    """
    from tokenclean.pool import survey_pool
    from tokenclean.processes import Processes
    from tokenclean.scoring.pool_pass import PoolToScore, score_pool
    from tokenclean.scoring.stored_losses import ScoringPolicy

    processes = Processes.from_environment()
    policy = ScoringPolicy(scoring.precision, scoring.pack_tokens, _further_columns(columns), compile)
    sources = tuple(sources_of(pool, intake))
    listing = output.with_suffix(".rejected.jsonl")
    with sharing(processes):
        survey = None
        if processes.is_first:  # before the seconds that torch takes to load
            survey = survey_pool(sources, shard_characters, listing, max_rejected_share)

        from tokenclean.models.device import resolve_device
        from tokenclean.models.loading.load import load_tokenizer, resolve_source

        quiet_libraries()
        device = resolve_device(device, local_rank=processes.local_rank if processes.count > 1 else None)
        names = {"base": base} if reference is None else {"base": base, "reference": reference}
        models = {name: resolve_source(model, trusted=trust_remote_code) for name, model in names.items()}
        tokenizer = load_tokenizer(models["base"])
        if reference is not None and processes.is_first:
            _check_reference(models["reference"], tokenizer, sources, tokens.template)
        observer = Observer(note, progress)
        if not processes.is_first:
            observer = Observer(lambda text: note(f"rank {processes.rank}: {text}"))
        outcome = score_pool(
            PoolToScore(sources, survey, listing, shard_characters, max_rejected_share),
            models,
            tokenizer,
            output,
            tokenization=tokens,
            policy=policy,
            device=device,
            processes=processes,
            observer=observer,
        )
    if outcome is not None:
        _print(outcome, output, listing)


def _further_columns(given: list[str] | None) -> tuple[str, ...]:
    """The names of ``--columns``, in the order of the table's columns. Raises RecipeError for an unknown one."""
    from tokenclean.scoring.scorer import FURTHER_COLUMNS

    names = [name.strip() for names in given or () for name in names.split(",")]
    if unknown := [name for name in names if name not in FURTHER_COLUMNS]:
        raise RecipeError(f"--columns: found {unknown[0]!r}, expected names of {', '.join(FURTHER_COLUMNS)}", "options")
    return tuple(name for name in FURTHER_COLUMNS if name in names)


def _check_reference(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, sources: Sequence[SourceSettings], template: str
) -> None:
    """Raise TokenizerMismatchError unless the reference has the base's tokenizer, also on texts of the first rows."""
    from tokenclean.models.loading.load import load_tokenizer
    from tokenclean.models.loading.tokenizer_identity import check_same_tokenizer, sample_texts
    from tokenclean.pool import Conversation, Pool, stream_sources

    rows = (row for row in stream_sources(sources, is_first_reading=False) if isinstance(row, Conversation))
    texts = sample_texts(Pool(tuple(islice(rows, _COMPARED_ROWS))), tokenizer, template)
    for difference in check_same_tokenizer(tokenizer, load_tokenizer(source), texts):
        note(f"reference: {difference} (allowed: text is rendered with the base's)")


def _print(outcome: PassOutcome, output: Path, listing: Path) -> None:
    print_intake(outcome.intake)
    if count := outcome.intake.set_aside:
        note(f"{count:,} rows set aside, listed in {listing}")
    table = outcome.table
    say(f"{output}: {table.rows:,} conversations, {table.response_tokens:,} response tokens")
    say(f"  {outcome.made} shards computed, {outcome.found} found in {outcome.folder}")
    for name, mean in table.means.items():
        say(f"  mean {name} {mean:.4f} nats")
