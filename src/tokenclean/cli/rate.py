"""``tokenclean rate``: an LLM's ratings of a pool's conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from tokenclean.asking.settings import EndpointSettings
from tokenclean.cli.asking import (
    AskedModelOption,
    AskSettings,
    EndpointOption,
    LocalOption,
    SamplingSettings,
    YesOption,
    open_asker,
    read_asked_pool,
)
from tokenclean.cli.console import note, say
from tokenclean.cli.intake import sources_of
from tokenclean.cli.options import (
    DeviceOption,
    ExecutorOptions,
    IntakeOptions,
    PoolArgument,
    RejectedShareOption,
    TrustOption,
)
from tokenclean.cli.settings_options import FromSettings, takes_settings


@takes_settings
def rate(
    pool: PoolArgument,
    model: AskedModelOption,
    endpoint: EndpointOption = None,
    local: LocalOption = False,
    output: Annotated[Path, Option("--output", "-o", help="The ratings to write.")] = Path("ratings.parquet"),
    yes: YesOption = False,
    *,
    rating: Annotated[AskSettings, FromSettings(AskSettings)],
    executor: ExecutorOptions,
    device: DeviceOption,
    trust_remote_code: TrustOption,
    server: Annotated[EndpointSettings, FromSettings(EndpointSettings, panel="The server")],
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
    from tokenclean.ds2.rating_prompt import empty_rating_prompt, rating_questions
    from tokenclean.ds2.ratings import ratings_of, write_ratings

    with open_asker(
        model,
        endpoint,
        local=local,
        output=output,
        settings=rating,
        sampling=answers,
        server=server,
        task=empty_rating_prompt(),
        device=device,
        trusted=trust_remote_code,
        executor=executor,
    ) as asker:
        rows = read_asked_pool(sources_of(pool, intake), output, max_rejected_share)[: rating.max_rows]
        questions = rating_questions(rows, asker.model)
        if not asker.may_ask([questions], len(rows), yes=yes):
            return
        outcome = asker.ask(questions, "rating")
        ratings = ratings_of(questions.ids, asker.model.name, outcome.answers)
        write_ratings(output, ratings, {**asker.facts(), "cut_rows": questions.cut})
        unread = ~ratings.is_parsed
        say(f"{output}: {len(ratings):,} rows rated by {ratings.rater}, {int(unread.sum()):,} of them without a rating")
        asker.print_outcome(outcome)
        if unread.mean() > 0.05:
            note("many answers hold no rating: try a larger --max-tokens or another model")
