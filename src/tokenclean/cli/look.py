"""``tokenclean look``: what a pool of texts holds and what is odd in it, in seconds and without a model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from typer import Option

from tokenclean.cli.console import out, say
from tokenclean.cli.intake import print_intake, sources_of
from tokenclean.cli.options import IntakeOptions, PoolArgument, RejectedShareOption
from tokenclean.cli.settings_options import takes_settings

if TYPE_CHECKING:
    from tokenclean.checks import Example, Survey, TextResult
    from tokenclean.checks.survey import Lengths
    from tokenclean.recipe import SourceSettings

_SHOWN_NAMES = 4
_STOCK_SHARE = 0.03  # as cleaning.repetition.row_share
_INVISIBLE = {code: f"‹U+{code:04X}›" for code in (0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF)}
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@takes_settings
def look(
    pool: PoolArgument,
    details: Annotated[
        bool, Option("--details", help="Below each finding, say what it is, why it matters and what helps.")
    ] = False,
    json_file: Annotated[
        str | None, Option("--json", metavar="FILE", help="Write everything as JSON too; - prints JSON alone.")
    ] = None,
    *,
    max_rejected_share: RejectedShareOption,
    intake: IntakeOptions,
) -> None:
    """Look at a pool without a model: rows, formats, lengths, languages, duplicates, stock phrases, refusals, loops,
    answers that break off or copy the prompt, odd characters.

    Each finding has its rows and three examples with file and line. The checks are those of audit that need no
    tokenizer; where one has not looked at every row, it says so. The exit code is 0 with findings too, and 2
    for a file that cannot be read or holds no usable row.

    Example: tokenclean look my.jsonl
    """
    from tokenclean.checks import survey_texts
    from tokenclean.pool import stream_sources
    from tokenclean.store import atomic_path

    sources = sources_of(pool, intake)
    survey = survey_texts(stream_sources(sources))
    if json_file is not None:
        text = json.dumps({"data": pool, **survey.to_json()}, indent=2, ensure_ascii=json_file == "-") + "\n"
        if json_file == "-":
            typer.echo(text, nl=False)
            return
        with atomic_path(Path(json_file)) as temporary:
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    _print_contents(survey, pool)
    out.print()
    if survey.tokenized < survey.intake.usable:
        _print_findings(survey, details=details)
        out.print()
    for line in _next_steps(survey, sources, max_rejected_share, details=details, has_options=bool(intake)):
        say(line)


def _print_contents(survey: Survey, pool: list[str]) -> None:
    rows = survey.intake
    plural = "s" * (rows.rows != 1)
    say(Text(f"{', '.join(pool)}: {rows.rows:,} row{plural}, {rows.usable:,} usable", "bold"))
    print_intake(rows)
    formats = _shares(survey.formats)
    extras = {"system prompt": survey.with_system, "tools": survey.with_tools, "ids, no text": survey.tokenized}
    formats += "".join(f"; {name} in {count:,}" for name, count in extras.items() if count)
    facts = {
        "formats": formats,
        "sources": _shares(survey.sources) if len(survey.sources) > 1 else "",
        "languages": f"{_shares(survey.languages)} (an estimate, from script and common words)",
        "prompts": _length_text(survey.prompt),
        "answers": f"{_length_text(survey.response)}; {_turns_text(survey.turns)}",
    }
    has_text = survey.tokenized < rows.usable
    for name, text in facts.items():
        if text and (has_text or name in ("formats", "sources")):
            _say_cut(Text.assemble((f"{name:<11}", "dim"), _visible(text)))


def _shares(counts: Mapping[str, int]) -> str:
    total, shown = sum(counts.values()), list(counts.items())[:_SHOWN_NAMES]
    parts = [f"{name} {_percent(count / total)}" if len(counts) > 1 else f"{name} {count:,}" for name, count in shown]
    further = len(counts) - len(shown)
    return ", ".join(parts) + (f", {further} more" if further else "")


def _length_text(lengths: Lengths) -> str:
    place = _short_place(lengths.place)
    return f"median {lengths.median:,} characters, 95 % up to {lengths.p95:,}, longest {lengths.longest:,} ({place})"


def _turns_text(turns: Mapping[int, int]) -> str:
    if list(turns) == [1]:
        return "one a row"
    mean = sum(count * rows for count, rows in turns.items()) / max(sum(turns.values()), 1)
    return f"{mean:.1f} a row, at most {max(turns, default=0)}"


def _print_findings(survey: Survey, *, details: bool) -> None:
    found = survey.found
    width = max((len(result.title) for result in found), default=0)
    if found:
        say(Text(f"{'finding':<{width}}  {'rows':>7}  {'share':>7}  examples", "dim"))
    for result in found:
        _print_finding(result, width, details=details)
    if clean := [result.title for result in survey.results if not result.rows]:
        say(Text(f"not found: {', '.join(clean)}", "dim"))
    for result in survey.results:
        if result.note:
            say(f"{result.title}: {result.note}")


def _print_finding(result: TextResult, width: int, *, details: bool) -> None:
    head = f"{result.title:<{width}}  {result.rows:>7,}  {_percent(result.share):>7}  "
    examples = [_example_text(example) for example in result.examples]
    if result.groups:
        examples = [f"{g.rows:,} × “{g.phrase}” ({_short_place(g.place)})" for g in result.groups[: len(examples)]]
    for number, text in enumerate(examples):
        start = Text(head, _COLOURS[result.severity]) if number == 0 else Text(" " * len(head))
        _say_cut(start.append(_visible(text), "default"))
    if details:
        say(f"    {result.meaning}")
        say(f"    what helps: {result.remedy}")


def _example_text(example: Example) -> str:
    return f"{_short_place(example.place)} {example.text}: {example.excerpt.strip()}"


def _next_steps(
    survey: Survey,
    sources: list[SourceSettings],
    max_rejected_share: float,
    *,
    details: bool,
    has_options: bool,
) -> Iterator[str]:
    if survey.intake.faulty_share > max_rejected_share:
        share = f"{survey.intake.faulty_share:.1%}"
        yield f"a run refuses this pool: {share} of the rows cannot be used (--max-rejected-share)"
    if survey.tokenized:
        yield f"{survey.tokenized:,} rows hold ids and no text: only audit checks them"
    if survey.found and not details:
        yield "--details says what each finding means and what helps"
    also = ", with the same reading options" if has_options else ""
    names = [f"hf://datasets/{source.hub}" if source.hub else source.place for source in sources]
    yield f"faults of labels and templates{also}: tokenclean audit {shlex.quote(names[0])} --model MODEL"
    options = "".join(f" --set {shlex.quote(setting)}" for setting in _helping_settings(survey))
    yield f"clean and train{also}: tokenclean run {shlex.join(names)} --model MODEL{options}"


def _helping_settings(survey: Survey) -> list[str]:
    """Recipe keys that act on what was found."""
    found = {result.name: result for result in survey.found}
    settings = []
    if "near_duplicate" in found:
        settings.append("pool.filters.duplicates=near")
    elif "duplicated" in found:
        settings.append("pool.filters.duplicates=exact")
    phrases = [found[name] for name in ("repeated_opener", "repeated_closer") if name in found]
    if any(result.groups[0].rows >= _STOCK_SHARE * survey.intake.usable for result in phrases):
        settings.append("cleaning.also=[repetition]")
    return settings


def _short_place(place: str) -> str:
    """A place without the folders."""
    return place.rsplit("/", 1)[-1]


def _say_cut(text: Text) -> None:
    """Print one line, cut at the console's edge."""
    text.truncate(out.width, overflow="ellipsis")
    out.print(text, soft_wrap=True)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share == 1 else f"{share:.1%}" if share >= 0.001 or not share else "<0.1%"


def _visible(text: str) -> str:
    """The text in one line, without characters that command the terminal and with those that nobody sees."""
    from tokenclean.report.viewer.terminal import visible

    return visible(" ".join(text.replace("\n", "↵").split())).translate(_INVISIBLE)
