"""``tokenclean score``: losses and scores of a pool, as one Parquet table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ValidationError
from typer import Option

from tokenclean.cli.console import note, progress, quiet_libraries, say
from tokenclean.cli.distributed import executing
from tokenclean.cli.intake import print_intake, sources_of
from tokenclean.cli.options import (
    BaseOption,
    DeviceOption,
    ExecutorOptions,
    IntakeOptions,
    PoolArgument,
    RejectedShareOption,
    TokensOptions,
    TrustOption,
)
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.errors import RecipeError
from tokenclean.observer import Observer
from tokenclean.recipe import ScoringSettings, ServedModel
from tokenclean.recipe.error_messages import explain_all
from tokenclean.recipe.settings import NEEDS_EXACT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenclean.models.loading.load import ModelSource
    from tokenclean.processes import Processes
    from tokenclean.recipe import SourceSettings
    from tokenclean.scoring.model_losses import ScoringPolicy
    from tokenclean.scoring.pool_pass import PassOutcome

_COMPARED_ROWS = 200
_SERVER_OPTIONS = (
    *("api", "align", "token_budget"),
    *("key_variable", "concurrency", "requests_per_minute", "timeout", "tries"),
)

ReferenceOption = Annotated[
    str | None,
    Option(
        help="Reference model; without it only base losses are computed. With --reference-url its name on a server."
    ),
]
ReferenceUrlOption = Annotated[
    str | None, Option(metavar="URL", help="Server that computes the reference's losses: http://host:8000/v1.")
]
ColumnsOption = Annotated[
    list[str] | None,
    Option(
        metavar="NAMES",
        help="Further columns of each model, for each response token: entropy, is_top1, probability, collision; "
        "repeatable, or with commas.",
    ),
]


@takes_settings
def score(
    pool: PoolArgument,
    base: BaseOption,
    output: Annotated[Path, Option("--output", "-o", help="The table to write.")] = Path("scores.parquet"),
    reference: ReferenceOption = None,
    reference_url: ReferenceUrlOption = None,
    columns: ColumnsOption = None,
    compile: Annotated[
        Literal["auto", "on", "off"],
        Option(help="Compile the layers; auto does so on a GPU where the pool is large enough for it to pay."),
    ] = "auto",
    shard_characters: Annotated[
        int, Option(min=1, help="Characters of text in a shard, the most work that a stopped pass loses.")
    ] = 1 << 20,
    *,
    tokens: TokensOptions,
    scoring: Annotated[ScoringSettings, FromSettings(ScoringSettings, "precision", "pack_tokens")],
    served: Annotated[Mapping[str, object], FromSettings(ServedModel, *_SERVER_OPTIONS, panel="A served reference")],
    executor: ExecutorOptions,
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
    shards; with --on ray the actors of a Ray cluster tokenize and score them. With --reference-url the reference's
    losses come from a server, the base's are computed here.

    Example: tokenclean score my.jsonl --base HuggingFaceTB/SmolLM2-135M --reference runs/warm-up -o scores.parquet
    """
    from tokenclean.pool import survey_pool
    from tokenclean.scoring.model_losses import ScoringPolicy
    from tokenclean.scoring.pool_pass import PoolToScore, score_pool

    policy = ScoringPolicy(scoring.precision, scoring.pack_tokens, _further_columns(columns), compile)
    server = _served_reference(reference, reference_url, served, policy)
    sources = tuple(sources_of(pool, intake))
    listing = output.with_suffix(".rejected.jsonl")
    with executing(executor, note) as chosen:
        processes, survey = chosen.processes, None
        if processes.is_first:  # before the seconds that torch takes to load
            survey = survey_pool(sources, shard_characters, listing, max_rejected_share)

        from tokenclean.models.device import device_for
        from tokenclean.models.loading.load import load_tokenizer, resolve_source

        quiet_libraries()
        device = device_for(chosen, device)
        base_source = resolve_source(base, trusted=trust_remote_code)
        models: dict[str, ModelSource | ServedModel] = {"base": base_source}
        tokenizer = load_tokenizer(base_source)
        if reference is not None:
            models["reference"] = server or resolve_source(reference, trusted=trust_remote_code)
            if processes.is_first:
                _check_reference(models["reference"], tokenizer, sources, tokens.template)
        outcome = score_pool(
            PoolToScore(sources, survey, listing, shard_characters, max_rejected_share),
            models,
            tokenizer,
            output,
            tokenization=tokens,
            policy=policy,
            device=device,
            executor=chosen,
            observer=_observer(processes),
        )
    if outcome is not None:
        _print(outcome, output, listing)


def _observer(processes: Processes) -> Observer:
    if processes.is_first:
        return Observer(note, progress)
    return Observer(lambda text: note(f"rank {processes.rank}: {text}"))


def _served_reference(
    name: str | None, url: str | None, given: Mapping[str, object], policy: ScoringPolicy
) -> ServedModel | None:
    """The reference behind a server, None without ``--reference-url``. Raises RecipeError for what does not fit."""
    if url is None:
        if given:
            names = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise RecipeError(f"{names}: for a served reference only; give --reference-url", "options")
        return None
    problems = []
    if name is None:
        problems.append("--reference-url: give the model's name on the server with --reference")
    if policy.precision != "exact":
        problems.append(f"--precision: {NEEDS_EXACT}; give --precision exact")
    if policy.columns:
        problems.append("--columns: a server gives losses only")
    try:
        served = ServedModel.model_validate({"url": url, "model": name or "?", **given})
    except ValidationError as error:
        raise RecipeError([*problems, *explain_all(error, ServedModel)], "options") from error
    if problems:
        raise RecipeError(problems, "options")
    return served


def _further_columns(given: list[str] | None) -> tuple[str, ...]:
    """The names of ``--columns``, in the order of the table's columns. Raises RecipeError for an unknown one."""
    from tokenclean.scoring.scorer import FURTHER_COLUMNS

    names = [name.strip() for names in given or () for name in names.split(",")]
    if unknown := [name for name in names if name not in FURTHER_COLUMNS]:
        raise RecipeError(f"--columns: found {unknown[0]!r}, expected names of {', '.join(FURTHER_COLUMNS)}", "options")
    return tuple(name for name in FURTHER_COLUMNS if name in names)


def _check_reference(
    source: ModelSource | ServedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[SourceSettings],
    template: str,
) -> None:
    """Raise TokenizerMismatchError unless the reference has the base's tokenizer, also on texts of the first rows. A
    served one is checked when its server is first asked."""
    if isinstance(source, ServedModel):
        return
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
