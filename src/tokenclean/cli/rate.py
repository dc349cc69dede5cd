"""``tokenclean rate``: an LLM's ratings of a pool's conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typer import Option

from tokenclean.cli.console import note, progress, quiet_libraries, say
from tokenclean.cli.intake import print_intake, sources_of
from tokenclean.cli.options import DeviceOption, IntakeOptions, PoolArgument, RejectedShareOption, TrustOption
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.ds2.rater_settings import RaterServerSettings, Sampling
from tokenclean.errors import RecipeError
from tokenclean.recipe.base_settings import Section

if TYPE_CHECKING:
    from tokenclean.ds2.endpoint import Endpoint
    from tokenclean.ds2.questions import CostEstimate, Questions, RatingRun
    from tokenclean.pool import Conversation
    from tokenclean.recipe import SourceSettings

_UNASKED_REQUESTS = 100
"""Up to this many requests go to a server without a price without --yes."""


class RatingSettings(Section):
    """What is rated, and how often a model is asked."""

    max_rows: int | None = Field(default=None, ge=1)
    """Rate only this many rows, the first ones."""
    max_characters: int = Field(default=8192, ge=100)
    """Cut samples at this many characters (with --local at 2,048 tokens)."""
    attempts: int = Field(default=3, ge=1)
    """Ask up to this often where an answer is unreadable."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts in a batch, with --local."""
    price_in: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens."""
    price_out: float | None = Field(default=None, ge=0)
    """Price of a million answer tokens."""


class SamplingSettings(Sampling):
    """How answers are drawn."""

    server_sampling: bool = False
    """Leave temperature and top-p to the server."""

    def of_rater(self, *, is_local: bool) -> Sampling:
        """The sampling of a model loaded here, or of a server's."""
        values = self.model_dump(exclude={"server_sampling"})
        if self.server_sampling:
            values |= {"temperature": None, "top_p": None}
        if is_local and self.top_k is None:
            values |= {"top_k": 50}
        return Sampling.model_validate(values)


@takes_settings
def rate(
    pool: PoolArgument,
    model: Annotated[str, Option(help="Its name on the server; with --local a Hub id, folder, GGUF file or adapter.")],
    endpoint: Annotated[
        str | None, Option(metavar="URL", help="An OpenAI-compatible server, such as https://api.openai.com/v1.")
    ] = None,
    local: Annotated[bool, Option("--local", help="Load the model here instead.")] = False,
    output: Annotated[Path, Option("--output", "-o", help="The ratings to write.")] = Path("ratings.parquet"),
    yes: Annotated[
        bool,
        Option("--yes", help=f"Send the requests; needed with a price or for more than {_UNASKED_REQUESTS} of them."),
    ] = False,
    *,
    rating: Annotated[RatingSettings, FromSettings(RatingSettings)],
    device: DeviceOption,
    trust_remote_code: TrustOption,
    server: Annotated[RaterServerSettings, FromSettings(RaterServerSettings, panel="The server")],
    answers: Annotated[SamplingSettings, FromSettings(SamplingSettings, panel="Sampling of answers")],
    max_rejected_share: RejectedShareOption,
    intake: IntakeOptions,
) -> None:
    """Have a model rate every conversation: rarity, complexity, informativeness and overall quality, from 1 to 10.

    Prints a cost estimate first. With a price, or for more than 100 requests, nothing is sent without --yes. Every
    answer is kept beside the output as it arrives: a stopped command, given again, continues from there. The API key is
    read from the environment only.

    Example: tokenclean rate my.jsonl --model gpt-4o-mini --endpoint https://api.openai.com/v1 --price-in 0.15
    --price-out 0.6 -o ratings.parquet
    """
    from tokenclean.ds2.endpoint import Endpoint
    from tokenclean.ds2.questions import estimate_cost, prepare_questions
    from tokenclean.ds2.rating_prompt import first_characters
    from tokenclean.ds2.ratings import write_ratings
    from tokenclean.servers.answer_cache import read_answers

    if local == (endpoint is not None):
        raise RecipeError("name either --endpoint URL (a server) or --local (a model loaded here)", "options")
    sampling = answers.of_rater(is_local=local)
    cache = output.with_suffix(".answers")
    sources = sources_of(pool, intake)
    asked = None if endpoint is None else Endpoint(endpoint, server)
    rows = _read_pool(sources, output, max_rejected_share)[: rating.max_rows]
    if asked is None:
        run, facts = _ask_here(rows, model, trust_remote_code, device, cache, sampling, rating)
    else:
        shorten = first_characters(rating.max_characters)
        questions = prepare_questions(rows, model, sampling=sampling, shorten=shorten)
        prices = rating.model_dump(include={"attempts", "price_in", "price_out"})
        estimate = estimate_cost(questions, read_answers(cache), **prices)
        _print_estimate(questions, estimate, rating.attempts)
        if not yes and estimate.requests and (estimate.money or estimate.requests > _UNASKED_REQUESTS):
            note("nothing was sent; give --yes to send it")
            return
        run, facts = _ask_server(questions, asked, cache, rating.attempts)
    write_ratings(output, run.ratings, {**facts, "attempts": rating.attempts})
    _print(run, output, cache, rating)


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


def _ask_server(
    questions: Questions, server: Endpoint, cache: Path, attempts: int
) -> tuple[RatingRun, dict[str, object]]:
    from tokenclean.ds2.endpoint import rate_by_endpoint
    from tokenclean.servers.answer_cache import open_cache

    with open_cache(cache) as answers:
        run = rate_by_endpoint(questions, server, answers, attempts=attempts, progress=progress("rating", "row"))
    return run, {"endpoint": server.address, **_facts(questions)}


def _ask_here(
    rows: Sequence[Conversation],
    model: str,
    trusted: tuple[str, ...],
    device: str,
    cache: Path,
    sampling: Sampling,
    rating: RatingSettings,
) -> tuple[RatingRun, dict[str, object]]:
    from tokenclean.ds2.local_rater import load_local_rater, rate_in_batches
    from tokenclean.models.device import resolve_device
    from tokenclean.models.loading.load import resolve_source
    from tokenclean.servers.answer_cache import open_cache

    quiet_libraries()
    rater = load_local_rater(resolve_source(model, trusted=trusted), sampling, device=resolve_device(device))
    questions = rater.questions(rows)
    with open_cache(cache) as answers:
        run = rate_in_batches(
            questions,
            rater.answer,
            answers,
            attempts=rating.attempts,
            batch_size=rating.batch_size,
            progress=progress("rating", "row"),
        )
    return run, {"weights": rater.identity, **_facts(questions)}


def _facts(questions: Questions) -> dict[str, object]:
    return {"sampling": questions.sampling.model_dump(), "cut_rows": questions.cut}


def _print_estimate(questions: Questions, estimate: CostEstimate, attempts: int) -> None:
    answered = len(questions) - estimate.requests
    cut = f"; {questions.cut:,} samples are too long and are cut" if questions.cut else ""
    say(f"{len(questions):,} rows, {answered:,} of them answered before{cut}")
    most = f"at most {estimate.most_requests:,} where answers are unreadable ({attempts} attempts)"
    say(f"  {estimate.requests:,} requests, {most}")
    say(f"  about {estimate.prompt_tokens:,} prompt tokens, at most {estimate.output_tokens:,} answer tokens")
    if estimate.money is not None and estimate.most_money is not None:
        say(f"  about {estimate.money:,.2f}, at most {estimate.most_money:,.2f}, at the prices given")


def _print(run: RatingRun, output: Path, cache: Path, rating: RatingSettings) -> None:
    ratings = run.ratings
    unread = int((~ratings.is_parsed).sum())
    say(f"{output}: {len(ratings):,} rows rated by {ratings.rater}, {unread:,} of them without a rating")
    say(f"  {run.asked:,} answers came in, {run.found:,} rows needed none; all in {cache}")
    if run.prompt_tokens or run.output_tokens:
        prices = (run.prompt_tokens * (rating.price_in or 0.0), run.output_tokens * (rating.price_out or 0.0))
        money = f", {sum(prices) / 1e6:,.2f} at the prices given" if any(prices) else ""
        say(f"  {run.prompt_tokens:,} prompt tokens and {run.output_tokens:,} answer tokens{money}")
    if (~ratings.is_parsed).mean() > 0.05:
        note("many answers hold no rating: try a larger --max-tokens or another model")
