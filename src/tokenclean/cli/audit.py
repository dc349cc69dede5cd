"""``tokenclean audit``: what is wrong with a dataset's labels, before a run finds out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from tokenclean.cli.console import note, out, quiet_libraries, say
from tokenclean.cli.intake import print_intake, sources_of
from tokenclean.cli.options import AuditTokensOptions, IntakeOptions, RejectedShareOption, TrustOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenclean.report.tables import Table
    from tokenclean.tokens.audit import AuditReport, CheckResult, Example

COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}  # the gravest first
TRAINED, AT_FAULT = ("⟦", "⟧"), ("‹", "›")


@takes_settings
def audit(
    data: Annotated[
        str, Argument(metavar="DATA", help="A pool, in any form that score takes, or rows of input_ids and labels.")
    ],
    model: Annotated[str, Option(help="Model whose tokenizer (and chat template) to use.")],
    checks: Annotated[
        list[str] | None, Option(metavar="NAMES", help="Run only these checks; repeatable, or with commas.")
    ] = None,
    max_rows: Annotated[int | None, Option(min=1, help="Stop reading after this many rows.")] = None,
    trainer: Annotated[
        str | None,
        Option(metavar="NAME", help="Audit what this trainer's own data code makes of the file: trl, transformers."),
    ] = None,
    packing: Annotated[
        str | None, Option(metavar="NAME", help="With --trainer trl: its packing, bfd or wrapped; by default none.")
    ] = None,
    details: Annotated[bool, Option("--details", help="List the checks that found nothing too.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON document.")] = False,
    *,
    tokens: AuditTokensOptions,
    trust_remote_code: TrustOption,
    max_rejected_share: RejectedShareOption,
    intake: IntakeOptions,
) -> None:
    """Find faults in the labels that a training would learn: prompts trained on, answers without an end, labels shifted
    by one, templates applied twice, and more.

    Conversations are rendered, tokenized and labelled as a run would do it; rows of input_ids and labels, from any
    tool, are checked unchanged, and with --template they are expected to show a template. Every fault is printed with a
    count, three examples and a remedy, errors first; then rows set aside, keys not used and changes to rows. Exit code
    2 where a run would refuse the data, else 1 where an error is found, 0 for none or warnings only.

    With --trainer the file goes through that trainer's own code, with its defaults, into batches, and what the batches
    would train is checked: rows cut or left out, an end token masked as padding, prompts trained, packs without
    boundaries.

    Example: tokenclean audit my.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --template tokenizer
    """
    from tokenclean.tokens.audit import audit_sources, check_names

    names = check_names([name.strip() for names in checks or () for name in names.split(",")])
    given = tokens.model_fields_set
    if trainer is None and packing is not None:
        raise RecipeError("packing: expected --trainer with it", "options")
    sources = sources_of([data], intake)

    from tokenclean.models.loading.load import load_tokenizer, resolve_source
    from tokenclean.pool import check_usable

    quiet_libraries()
    tokenizer = load_tokenizer(resolve_source(model, trusted=trust_remote_code))
    if trainer is not None:
        _refuse_beside_trainer(checks=checks, template="template" in given, date="date" in given, reading=intake)
        max_length = tokens.max_length if "max_length" in given else None
        report = _audit_trainer(trainer, data, tokenizer, max_length, packing, max_rows)
    else:
        report = audit_sources(
            sources,
            tokenizer,
            template=tokens.template if "template" in given else None,
            max_length=tokens.max_length,
            date=tokens.date,
            checks=names,
            max_rows=max_rows,
        )
    if as_json:
        typer.echo(json.dumps({"data": data, "model": model, "trainer": trainer, **report.to_json()}, indent=2))
    else:
        _print(report, data, details=details)
    check_usable(report.intake, max_rejected_share, are_reasons_shown=not as_json)
    if report.has_errors:
        raise typer.Exit(1)


def _refuse_beside_trainer(**given: object) -> None:
    """Raise RecipeError for options that a trainer's own data code does not know."""
    if names := [name for name, value in given.items() if value]:
        raise RecipeError(
            f"--trainer reads and renders the file by the trainer's own code; leave out: {', '.join(names)}", "options"
        )


def _audit_trainer(
    trainer: str,
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    packing: str | None,
    max_rows: int | None,
) -> AuditReport:
    from tokenclean.integrations.trainer_audit import audit_trainer
    from tokenclean.integrations.trainer_rows import TRAINERS

    if trainer not in TRAINERS:
        raise RecipeError(f"trainer: found {trainer!r}, expected one of {', '.join(TRAINERS)}", "options")
    path = Path(data)
    rows = TRAINERS[trainer](path, tokenizer, max_length=max_length, packing=packing, max_rows=max_rows)
    cut = f"max_length {rows.max_length:,}" if rows.max_length else "no max_length"
    note(f"{data} as {rows.trainer} trains it: {cut}, packing {packing or 'off'}")
    return audit_trainer(rows, tokenizer, path)


def _print(report: AuditReport, data: str, *, details: bool) -> None:
    shown = f"{data}: {report.rows:,} rows, {report.tokens:,} tokens, {report.targets:,} of them trained"
    if report.tokenized:
        family = f", {report.family} template" if report.family else ""
        shown += f"; {report.tokenized:,} rows came tokenized{family}"
    say(shown)
    found = sorted(report.found, key=lambda result: list(COLOURS).index(result.severity))
    if listed := report.results if details else found:
        out.print()
        out.print(_table(listed).to_rich())
    if found and not details:
        say(f"{len(report.results) - len(found)} checks found nothing (--details lists them)", "dim")
    for reason, names in _unjudged(report).items():
        say(f"not judged: {', '.join(names)}: {reason}")
    for result in report.results:
        if result.note:
            say(f"{result.name}: {result.note}")
    print_intake(report.intake)
    if found:
        out.print()
        trained, at_fault = _painted("trained", True, False), _painted("at fault", False, True)
        say(Text.assemble("in the examples ", trained, " and ", at_fault))
    elif not report.intake.set_aside:
        say("nothing found", "green")
    for result in found:
        _print_finding(result)


def _table(results: Sequence[CheckResult]) -> Table:
    from tokenclean.report.tables import Table, share_text

    rows = []
    for result in results:
        unjudged = sum(result.unjudged.values())
        share = share_text(result.share if result.rows else None)
        rows.append((result.name, result.severity, f"{result.rows:,}", share, f"{unjudged:,}" if unjudged else ""))
    return Table("Audit", ("check", "severity", "rows", "share", "not judged"), tuple(rows), text_columns=(0, 1))


def _unjudged(report: AuditReport) -> dict[str, list[str]]:
    """Reason -> the checks that could not judge rows for it, each with the number of rows."""
    reasons: dict[str, list[str]] = {}
    for result in report.results:
        for reason, rows in result.unjudged.items():
            reasons.setdefault(reason, []).append(f"{result.name} ({_rows(rows)})")
    return reasons


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count > 1)}"


def _print_finding(result: CheckResult) -> None:
    out.print()
    heading = (f"{result.severity}: {result.name}", COLOURS[result.severity])
    say(Text.assemble(heading, f", {_rows(result.rows)}"))
    say(f"  {result.meaning}")
    for example in result.examples:
        last = example.end - 1
        span = f", tokens {example.start}–{last}" if last > example.start else f", token {last}" if example.end else ""
        name = example.row if example.row == example.place else f"{example.row} ({example.place})"
        say(f"  {name}{span}: {_visible(example.text)}")
        say(_marked(example))
    say(f"  remedy: {result.remedy}")


def _marked(example: Example) -> Text:
    text = Text("    " if example.starts_row else "    …")
    for piece in example.pieces:
        text.append_text(_painted(_visible(piece.text), piece.is_trained, piece.is_at_fault))
    return text if example.ends_row else text.append("…")


def _painted(text: str, is_trained: bool, is_at_fault: bool) -> Text:
    if not out.is_terminal:
        text = text.join(AT_FAULT) if is_at_fault else text
        text = text.join(TRAINED) if is_trained else text
    style = "bold green" if is_trained else "dim"
    return Text(text, style=f"{style} reverse" if is_at_fault else style)


def _visible(text: str) -> str:
    """The text in one line, since a line break may be the fault, and without characters that command the terminal."""
    from tokenclean.report.viewer.terminal import visible

    return visible(text.replace("\n", "↵").replace("\t", "⇥"))
