"""``tokenclean rate``: an LLM's ratings of a pool's conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.intake import IntakeOptions, print_intake, sources_of, takes_intake
from tokenclean.cli.options import (
    DeviceOption,
    PoolArgument,
    RejectedShareOption,
    TrustOption,
)
from tokenclean.errors import RecipeError

if TYPE_CHECKING:
    from tokenclean.ds2.endpoint import Endpoint
    from tokenclean.ds2.questions import CostEstimate, Questions, RatingRun, Sampling
    from tokenclean.pool import Conversation
    from tokenclean.recipe import SourceSettings

_UNASKED_REQUESTS = 100
"""So many requests to a server without a price are sent without --yes."""


class TokensParameter(StrEnum):
    max_tokens = "max_tokens"
    max_completion_tokens = "max_completion_tokens"


@takes_intake
def rate(
    pool: PoolArgument,
    model: Annotated[
        str, typer.Option(help="Its name on the server; with --local a Hub id, folder, GGUF file or adapter.")
    ],
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, such as https://api.openai.com/v1.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Load the model here instead.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ratings to write.")] = Path("ratings.parquet"),
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help=f"Send what the estimate says; needed with a price or more than {_UNASKED_REQUESTS} requests."
        ),
    ] = False,
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million answer tokens.")] = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the API key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=0.001, help="Send no more than this; the server's own limits are kept anyway.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 60.0,
    tries: Annotated[int, typer.Option(min=1, help="Tries of a request that fails (429, 5xx, no connection).")] = 6,
    attempts: Annotated[int, typer.Option(min=1, help="Ask again so often in all where an answer is unreadable.")] = 3,
    mark_refused: Annotated[
        bool, typer.Option("--mark-refused", help="Leave rows that the server refuses (400, 413, 422) unrated.")
    ] = False,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Rate the first so many rows only.")] = None,
    max_characters: Annotated[
        int, typer.Option(min=100, help="Cut samples here (with --local at 2,048 tokens).")
    ] = 8192,
    temperature: Annotated[float, typer.Option(min=0)] = 1.2,
    top_p: Annotated[float, typer.Option(min=0.001, max=1)] = 0.9,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Not every server takes it.", show_default="none; 50 with --local")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 128,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Not every server takes it.", show_default="none; 0 with --local")
    ] = None,
    server_sampling: Annotated[
        bool, typer.Option("--server-sampling", help="Leave temperature and top-p to the server.")
    ] = False,
    tokens_parameter: Annotated[
        TokensParameter, typer.Option(help="What the server calls the limit of an answer.")
    ] = TokensParameter.max_tokens,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in a batch, with --local.")] = 8,
    max_rejected_share: RejectedShareOption = 0.05,
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Have a model rate every conversation: rarity, complexity, informativeness and overall quality, from 1 to 10.

    What it will cost is told first. With a price, or for more than 100 requests, nothing is sent without --yes. Every
    answer is kept beside the output as it comes: a stopped command, given again, goes on from there. The API key is
    read from the environment alone.

    Example: tokenclean rate my.jsonl --model gpt-4o-mini --endpoint https://api.openai.com/v1 --price-in 0.15
    --price-out 0.6 -o ratings.parquet
    """
    from tokenclean.ds2.answer_cache import read_answers
    from tokenclean.ds2.questions import Sampling
    from tokenclean.ds2.ratings import write_ratings

    if local == (endpoint is not None):
        raise RecipeError("name either --endpoint URL (a server) or --local (a model loaded here)", "options")
    sampling = Sampling(
        temperature=None if server_sampling else temperature,
        top_p=None if server_sampling else top_p,
        top_k=50 if local and top_k is None else top_k,
        max_tokens=max_tokens,
        seed=0 if local and seed is None else seed,
    )
    cache = output.with_suffix(".answers")
    sources = sources_of(pool, intake)
    if endpoint is None:
        trusted = tuple(trust_remote_code or ())
        rows = _read_pool(sources, output, max_rejected_share)[:max_rows]
        run, facts = _ask_here(rows, model, trusted, device, cache, sampling, attempts, batch_size)
    else:
        from tokenclean.ds2.endpoint import Endpoint
        from tokenclean.ds2.questions import estimate_cost, prepare_questions
        from tokenclean.ds2.rating_prompt import first_characters

        server = Endpoint(
            endpoint,
            key_variable=key_variable,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            timeout_seconds=timeout,
            tries=tries,
            tokens_parameter=tokens_parameter.value,
            marks_refused=mark_refused,
        )
        rows = _read_pool(sources, output, max_rejected_share)[:max_rows]
        questions = prepare_questions(rows, model, sampling=sampling, shorten=first_characters(max_characters))
        known = read_answers(cache)
        estimate = estimate_cost(questions, known, attempts=attempts, price_in=price_in, price_out=price_out)
        _print_estimate(questions, estimate, attempts)
        if not yes and _needs_consent(estimate):
            note("nothing was sent; give --yes to send it")
            return
        run, facts = _ask_server(questions, server, cache, attempts)
    write_ratings(output, run.ratings, {**facts, "sampling": asdict(sampling), "attempts": attempts})
    _print(run, output, cache, price_in, price_out)


def _read_pool(sources: Sequence[SourceSettings], output: Path, max_rejected_share: float) -> tuple[Conversation, ...]:
    from tokenclean.pool import Intake, check_usable, load_sources, write_rejected

    pool, listing = load_sources(sources), output.with_suffix(".rejected.jsonl")
    counted = Intake.of(pool)
    print_intake(counted)
    if pool.rejected:
        write_rejected(pool.rejected, listing)
        note(f"{len(pool.rejected):,} rows set aside, listed in {listing}")
    check_usable(counted, max_rejected_share, listing=listing if pool.rejected else None, are_reasons_shown=True)
    return pool.conversations


def _ask_server(questions: Questions, server: Endpoint, cache: Path, attempts: int) -> tuple[RatingRun, dict[str, Any]]:
    from tokenclean.ds2.answer_cache import open_cache
    from tokenclean.ds2.endpoint import rate_by_endpoint

    with open_cache(cache) as answers:
        run = rate_by_endpoint(questions, server, answers, attempts=attempts, progress=progress("rating", "row"))
    return run, {"endpoint": server.address, "cut_rows": questions.cut}


def _ask_here(
    rows: Sequence[Conversation],
    model: str,
    trusted: tuple[str, ...],
    device: str,
    cache: Path,
    sampling: Sampling,
    attempts: int,
    batch_size: int,
) -> tuple[RatingRun, dict[str, Any]]:
    from tokenclean.ds2.answer_cache import open_cache
    from tokenclean.ds2.local_rater import load_local_rater, rate_in_batches
    from tokenclean.models.device import resolve_device
    from tokenclean.models.loading.load import resolve_source

    quiet_libraries()
    rater = load_local_rater(resolve_source(model, trusted=trusted), device=resolve_device(device), sampling=sampling)
    questions = rater.questions(rows)
    with open_cache(cache) as answers:
        run = rate_in_batches(
            questions,
            rater.answer,
            answers,
            attempts=attempts,
            batch_size=batch_size,
            progress=progress("rating", "row"),
        )
    return run, {"weights": rater.identity, "cut_rows": questions.cut}


def _needs_consent(estimate: CostEstimate) -> bool:
    return estimate.requests > 0 and (bool(estimate.money) or estimate.requests > _UNASKED_REQUESTS)


def _print_estimate(questions: Questions, estimate: CostEstimate, attempts: int) -> None:
    answered = len(questions) - estimate.requests
    cut = f"; {questions.cut:,} samples are too long and are cut" if questions.cut else ""
    out.print(f"{len(questions):,} rows, {answered:,} of them answered before{cut}", soft_wrap=True)
    out.print(
        f"  {estimate.requests:,} requests, at most {estimate.most_requests:,} where answers are unreadable "
        f"({attempts} attempts)",
        soft_wrap=True,
    )
    out.print(
        f"  about {estimate.prompt_tokens:,} prompt tokens, at most {estimate.output_tokens:,} answer tokens",
        soft_wrap=True,
    )
    if estimate.money is not None and estimate.most_money is not None:
        out.print(f"  about {estimate.money:,.2f}, at most {estimate.most_money:,.2f}, at the prices given")


def _print(run: RatingRun, output: Path, cache: Path, price_in: float | None, price_out: float | None) -> None:
    ratings = run.ratings
    unread = int((~ratings.is_parsed).sum())
    out.print(
        f"{output}: {len(ratings):,} rows rated by {ratings.rater}, {unread:,} of them without a rating", soft_wrap=True
    )
    out.print(f"  {run.asked:,} answers came in, {run.found:,} rows needed none; all in {cache}", soft_wrap=True)
    if run.prompt_tokens or run.output_tokens:
        spent = (run.prompt_tokens * (price_in or 0.0) + run.output_tokens * (price_out or 0.0)) / 1e6
        money = f", {spent:,.2f} at the prices given" if spent else ""
        out.print(f"  {run.prompt_tokens:,} prompt tokens and {run.output_tokens:,} answer tokens{money}")
    if (~ratings.is_parsed).mean() > 0.05:
        note("many answers hold no rating: a larger --max-tokens or another model may mend that")
