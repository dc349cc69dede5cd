"""What ``rate`` and ``critic`` share: a model that is asked about rows, after its price is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import Field
from typer import Option

from tokenclean.asking.settings import EndpointSettings, Sampling
from tokenclean.cli.console import note, progress, quiet_libraries, say
from tokenclean.cli.distributed import executing_alone
from tokenclean.cli.intake import print_intake
from tokenclean.errors import RecipeError
from tokenclean.recipe.base_settings import Section

if TYPE_CHECKING:
    from tokenclean.asking.endpoint import Endpoint
    from tokenclean.asking.local_model import Batch, LocalModel
    from tokenclean.asking.questions import AskedModel, CostEstimate, Outcome, Questions
    from tokenclean.executors import Compute
    from tokenclean.pool import Conversation
    from tokenclean.recipe import ExecutorSettings, SourceSettings

UNASKED_REQUESTS = 100
"""Up to this many requests go to a server without a price without --yes."""

AskedModelOption = Annotated[
    str, Option(help="Its name on the server; with --local a Hub id, folder, GGUF file or adapter.")
]
EndpointOption = Annotated[
    str | None, Option(metavar="URL", help="An OpenAI-compatible server, such as https://api.openai.com/v1.")
]
LocalOption = Annotated[bool, Option("--local", help="Load the model here instead.")]
YesOption = Annotated[
    bool, Option("--yes", help=f"Send the requests; needed with a price or for more than {UNASKED_REQUESTS} of them.")
]

T = TypeVar("T")


class AskSettings(Section):
    """What is asked about, and how often."""

    local_tokens: ClassVar[int] = 2048
    """Where samples are cut for a model loaded here."""

    max_rows: int | None = Field(default=None, ge=1)
    """Ask about only this many rows, the first ones."""
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

    def money(self, prompt_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, 0 without prices."""
        return (prompt_tokens * (self.price_in or 0.0) + output_tokens * (self.price_out or 0.0)) / 1e6


class SamplingSettings(Sampling):
    """How answers are drawn."""

    server_sampling: bool = False
    """Leave temperature and top-p to the server."""

    def of_model(self, *, is_local: bool) -> Sampling:
        """The sampling of a model loaded here, or of a server's."""
        values = self.model_dump(exclude={"server_sampling"})
        if self.server_sampling:
            values |= {"temperature": None, "top_p": None}
        if is_local and self.top_k is None:
            values |= {"top_k": 50}
        return Sampling.model_validate(values)


@dataclass(frozen=True)
class Asker:
    """A model behind a server or a local one. ``model``: how it is asked. ``cache``: the folder of its answers.
    ``answer``: answers of a local one."""

    model: AskedModel
    source: Endpoint | LocalModel
    cache: Path
    settings: AskSettings
    answer: Compute[Batch, list[str]] | None = None

    def ask(self, questions: Questions[T], label: str) -> Outcome[T]:
        """Ask what has no answer yet. Raises as ``ask_endpoint`` and ``ask_in_batches``."""
        from tokenclean.asking.endpoint import Endpoint, ask_endpoint
        from tokenclean.asking.local_model import ask_in_batches
        from tokenclean.servers.answer_cache import open_cache

        attempts, shown = self.settings.attempts, progress(label, "question")
        with open_cache(self.cache) as answers:
            if isinstance(self.source, Endpoint):
                return ask_endpoint(questions, self.source, answers, attempts=attempts, progress=shown)
            assert self.answer is not None
            batch_size = self.settings.batch_size
            return ask_in_batches(
                questions, self.answer, answers, attempts=attempts, batch_size=batch_size, progress=shown
            )

    def may_ask(self, questions: Sequence[Questions[T]], rows: int, *, yes: bool) -> bool:
        """Print what asking a server will take; whether it may be asked. A model loaded here may."""
        from tokenclean.asking.endpoint import Endpoint
        from tokenclean.asking.questions import estimate_cost
        from tokenclean.servers.answer_cache import read_answers

        if not isinstance(self.source, Endpoint):
            return True
        prices = self.settings.model_dump(include={"attempts", "price_in", "price_out"})
        estimate = estimate_cost(questions, read_answers(self.cache), **prices)
        _print_estimate(questions, estimate, rows, self.settings.attempts)
        if yes or not estimate.requests or not (estimate.money or estimate.requests > UNASKED_REQUESTS):
            return True
        note("nothing was sent; give --yes to send it")
        return False

    def facts(self) -> dict[str, object]:
        """For the record: which model, how it was asked."""
        from tokenclean.asking.endpoint import Endpoint

        where = (
            {"endpoint": self.source.address}
            if isinstance(self.source, Endpoint)
            else {"weights": self.source.identity}
        )
        return {**where, "sampling": self.model.sampling.model_dump(), "attempts": self.settings.attempts}

    def print_outcome(self, *outcomes: Outcome[T]) -> None:
        """Print how many answers came in, and what they cost."""
        asked, found = (sum(getattr(one, name) for one in outcomes) for name in ("asked", "found"))
        say(f"  {asked:,} answers came in, {found:,} questions needed none; all in {self.cache}")
        tokens = [sum(getattr(one, name) for one in outcomes) for name in ("prompt_tokens", "output_tokens")]
        if any(tokens):
            money = self.settings.money(*tokens)
            at_prices = f", {money:,.2f} at the prices given" if money else ""
            say(f"  {tokens[0]:,} prompt tokens and {tokens[1]:,} answer tokens{at_prices}")


@contextmanager
def open_asker(
    model: str,
    endpoint: str | None,
    *,
    local: bool,
    output: Path,
    settings: AskSettings,
    sampling: SamplingSettings,
    server: EndpointSettings,
    task: str,
    device: str,
    trusted: tuple[str, ...],
    executor: ExecutorSettings,
) -> Iterator[Asker]:
    """A block with the model that the options name, whose answers are kept beside ``output``.

    ``task``: a prompt without a sample. ``executor``: who computes the answers of a local one.

    Raises RecipeError where the options name no model or two, or actors for a server's, whose limits are those of one
    client; ModelError for a local one that cannot be used.
    """
    from tokenclean.asking.endpoint import Endpoint
    from tokenclean.asking.prompts import first_characters
    from tokenclean.asking.questions import AskedModel

    if local == (endpoint is not None):
        raise RecipeError("name either --endpoint URL (a server) or --local (a model loaded here)", "options")
    cache, drawn = output.with_suffix(".answers"), sampling.of_model(is_local=local)
    if endpoint is not None:
        if executor.is_ray:
            raise RecipeError("--on: requests to a server are sent by this command alone; give --local", "options")
        shorten = first_characters(settings.max_characters)
        yield Asker(AskedModel(model, drawn, shorten), Endpoint(endpoint, server), cache, settings)
        return
    from tokenclean.asking.local_model import describe_local_model
    from tokenclean.models.device import device_for
    from tokenclean.models.loading.load import resolve_source

    quiet_libraries()
    with executing_alone(executor, note) as chosen:
        described = describe_local_model(
            resolve_source(model, trusted=trusted),
            drawn,
            task,
            most_tokens=settings.local_tokens,
            device=device_for(chosen, device),
        )
        with chosen.open(described) as answer:
            yield Asker(described.asked, described, cache, settings, answer)


def read_asked_pool(
    sources: Sequence[SourceSettings], output: Path, max_rejected_share: float
) -> tuple[Conversation, ...]:
    """The rows of the sources; those set aside are listed beside ``output``. Raises PoolError as ``check_usable``."""
    from tokenclean.pool import Intake, check_usable, load_sources, write_rejected

    pool, listing = load_sources(sources), output.with_suffix(".rejected.jsonl")
    counted = Intake.of(pool)
    print_intake(counted)
    if pool.rejected:
        write_rejected(pool.rejected, listing)
        note(f"{len(pool.rejected):,} rows set aside, listed in {listing}")
    check_usable(counted, max_rejected_share, listing=listing if pool.rejected else None, are_reasons_shown=True)
    return pool.conversations


def _print_estimate(questions: Sequence[Questions[T]], estimate: CostEstimate, rows: int, attempts: int) -> None:
    cut_of = {item.key: item.cut_characters > 0 for some in questions for item in some.items}
    asked, cut = len(cut_of), sum(cut_of.values())
    answered = asked - estimate.requests
    too_long = f"; {cut:,} samples are too long and are cut" if cut else ""
    say(f"{rows:,} rows, {asked:,} questions, {answered:,} of them answered before{too_long}")
    most = f"at most {estimate.most_requests:,} where answers are unreadable ({attempts} attempts)"
    say(f"  {estimate.requests:,} requests, {most}")
    say(f"  about {estimate.prompt_tokens:,} prompt tokens, at most {estimate.output_tokens:,} answer tokens")
    if estimate.money is not None and estimate.most_money is not None:
        say(f"  about {estimate.money:,.2f}, at most {estimate.most_money:,.2f}, at the prices given")
