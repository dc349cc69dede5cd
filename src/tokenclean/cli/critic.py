"""``tokenclean critic``: a language model names the sentences of a pool's answers that should not be trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from typer import Option

from tokenclean.asking.settings import EndpointSettings
from tokenclean.cli.asking import (
    AskedModelOption,
    Asker,
    AskSettings,
    EndpointOption,
    LocalOption,
    SamplingSettings,
    YesOption,
    open_asker,
    read_asked_pool,
)
from tokenclean.cli.console import note, say, say_tables, warn
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
from tokenclean.errors import RunError

if TYPE_CHECKING:
    from tokenclean.asking.questions import Questions
    from tokenclean.critic.critic_file import CriticRow
    from tokenclean.critic.reading import Reading, ShownRow
    from tokenclean.experiment.critic_check import CheckResult, CheckRows
    from tokenclean.pool import Conversation

_NAMED_ROWS = 5  # unreadable rows that are named on the screen; the file has all


class CriticSettings(AskSettings):
    """What is read, and how often a model is asked. A row is shown once, and its sentences once more."""

    local_tokens: ClassVar[int] = 8192

    max_characters: int = Field(default=32_768, ge=100)
    """Show at most this many characters of a row and the list of its sentences (with --local 8,192 tokens)."""


class CriticSampling(SamplingSettings):
    """How answers are drawn."""

    temperature: float | None = Field(default=0.7, ge=0)
    """Sampling temperature; at 0 only the orders of the sentences make the two readings differ."""
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens with this total probability."""
    max_tokens: int = Field(default=1024, ge=1)
    """Maximal length of an answer in tokens; a model that thinks needs more."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of the sampling, the orders and the planted noise; without it 0, and a server is sent none."""


@takes_settings
def critic(
    pool: PoolArgument,
    model: AskedModelOption,
    endpoint: EndpointOption = None,
    local: LocalOption = False,
    output: Annotated[Path, Option("--output", "-o", help="The file to write.")] = Path("critic.jsonl"),
    yes: YesOption = False,
    checked: Annotated[
        Path | None,
        Option(metavar="FILE", help="Check the critic on what people decided on these rows with `tokenclean review`."),
    ] = None,
    check_rows: Annotated[
        int,
        Option(min=0, help="Without --checked: check it on so many rows with planted noise; 0 checks nothing."),
    ] = 40,
    least_precision: Annotated[
        float | None,
        Option(min=0, max=1, help="Stop before the pool is read where the check finds a lower precision."),
    ] = None,
    *,
    asking: Annotated[CriticSettings, FromSettings(CriticSettings)],
    executor: ExecutorOptions,
    device: DeviceOption,
    trust_remote_code: TrustOption,
    server: Annotated[EndpointSettings, FromSettings(EndpointSettings, panel="The server")],
    answers: Annotated[CriticSampling, FromSettings(CriticSampling, panel="Sampling of answers")],
    max_rejected_share: RejectedShareOption,
    intake: IntakeOptions,
) -> None:
    """Have a model name the sentences that should not be trained, with reasons, and write them as weights of spans.

    Each row is read twice, with its sentences numbered in another order; those named both times get weight 0 and stay
    in the text. Rows of which more than half is masked are dropped. First the critic is checked on rows whose faults
    are known, and its precision, recall and agreement are printed. Train with --set cleaning.strategy=given
    --set cleaning.given=FILE.

    Costs are printed first. With a price, or for more than 100 requests, nothing is sent without --yes. Every answer is
    kept beside the output as it arrives: a stopped command, given again, continues from there. The API key is read from
    the environment only.

    Example: tokenclean critic my.jsonl --model gpt-4o-mini --endpoint https://api.openai.com/v1 --yes -o critic.jsonl
    """
    from tokenclean.critic.critic_file import unread_row, write_critic
    from tokenclean.critic.reading import ShownRow, critic_questions, empty_critic_prompt, shown_of
    from tokenclean.critic.sentences import sentences_of

    with open_asker(
        model,
        endpoint,
        local=local,
        output=output,
        settings=asking,
        sampling=answers,
        server=server,
        task=empty_critic_prompt(),
        device=device,
        trusted=trust_remote_code,
        executor=executor,
    ) as asker:
        rows = read_asked_pool(sources_of(pool, intake), output, max_rejected_share)
        shown = [shown_of(row, asker.model.shorten) for row in rows[: asking.max_rows]]
        readable = [row for row in shown if row.shown]
        seed = asker.model.sampling.seed or 0
        check = _check_rows([row.conversation for row in readable], checked, check_rows, seed)
        shown_of_check = [] if check is None else [shown_of(row, asker.model.shorten) for row in check.conversations]
        of_check, of_pool = (critic_questions(part, asker.model, seed) for part in (shown_of_check, readable))
        if not asker.may_ask([of_check, of_pool], len(readable), yes=yes):
            return
        result = check and _checked(asker, check, of_check, [row.shown for row in shown_of_check])
        if result is None:
            warn("the critic is not checked: nobody knows how many of the sentences that it masks are bad")
        else:
            _refuse_imprecise(result, least_precision)
        outcome = asker.ask(of_pool, "reading")
        judged = _judge(shown, outcome.answers)
        judged += [unread_row(ShownRow(row, sentences_of(row), 0), "not_asked") for row in rows[len(shown) :]]
        write_critic(output, judged)
        _write_facts(output, asker, result)
        _print(judged, output)
        asker.print_outcome(outcome)


def _check_rows(rows: Sequence[Conversation], checked: Path | None, count: int, seed: int) -> CheckRows | None:
    from tokenclean.experiment.critic_check import planted_rows, reviewed_rows
    from tokenclean.review.review_file import read_review

    if checked is not None:
        file = read_review(checked)
        for line in file.faults:
            note(line)
        return reviewed_rows(rows, file)
    return planted_rows(rows, count, seed) if count else None


def _checked(asker: Asker, check: CheckRows, questions: Questions[Reading], shown: Sequence[int]) -> CheckResult:
    """Have the check's rows read; prints how good the critic is on them."""
    from tokenclean.experiment.critic_check import check_lines, check_result, check_table

    outcome = asker.ask(questions, "reading rows with known faults")
    result = check_result(check, shown, outcome.answers)
    say_tables([check_table(result)])
    for line in check_lines(result):
        say(line)
    asker.print_outcome(outcome)
    return result


def _refuse_imprecise(result: CheckResult, least: float | None) -> None:
    found = result.precision
    if least is None or (found.total and found.share >= least):
        return
    state = f"is {found.share:.1%}" if found.total else "is not known, since it masks nothing"
    raise RunError(
        f"the critic's precision on the rows of the check {state}; --least-precision asks for {least:.1%}. The pool "
        "was not read: take another model, or let this one order a review only (without --least-precision)"
    )


def _judge(rows: Sequence[ShownRow], readings: Sequence[Reading | None]) -> list[CriticRow]:
    """``readings``: of the rows of which a sentence is shown, in their order."""
    from tokenclean.critic.critic_file import judged_row, unread_row
    from tokenclean.critic.reading import READINGS

    left, judged = iter(readings), []
    for row in rows:
        if row.shown:
            judged.append(judged_row(row, list(islice(left, READINGS))))
        else:
            judged.append(unread_row(row, "too_long" if row.sentences else "no_sentences"))
    return judged


def _write_facts(output: Path, asker: Asker, result: CheckResult | None) -> None:
    from tokenclean.store import write_json

    check = None if result is None else result.to_json()
    write_json(output.with_suffix(".facts.json"), {"model": asker.model.name, **asker.facts(), "check": check})


def _print(rows: Sequence[CriticRow], output: Path) -> None:
    from tokenclean.critic.critic_file import STATES
    from tokenclean.critic.reading import READINGS

    masked = sum(named.times == READINGS for row in rows for named in row.named)
    once = sum(len(row.named) for row in rows) - masked
    read = sum(row.shown for row in rows)
    say(f"{output}: {len(rows):,} rows; of {read:,} sentences {masked:,} named in both readings and {once:,} in one")
    states = Counter(row.state for row in rows)
    for state, text in STATES.items():
        if states[state]:
            say(f"  {states[state]:,} rows {text}")
    if cut := sum(0 < row.shown < row.sentences for row in rows):
        say(f"  {cut:,} rows read in part: their last sentences did not fit, and are kept")
    unread = [row.id for row in rows if row.state in ("unreadable", "too_long")]
    if unread:
        more = f" and {len(unread) - _NAMED_ROWS:,} more" if len(unread) > _NAMED_ROWS else ""
        note(f"not judged: {', '.join(unread[:_NAMED_ROWS])}{more}")
    if states["unreadable"] > 0.05 * len(rows):
        note("many answers cannot be read: try a larger --max-tokens or another model")
