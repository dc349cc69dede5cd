"""``tokenclean audit``: what is wrong with a dataset's labels, before a run finds out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from tokenclean.cli.console import out, quiet_libraries
from tokenclean.cli.intake import IntakeOptions, print_intake, sources_of, takes_intake
from tokenclean.cli.options import DEFAULT_DATE, DateOption, LengthOption, RejectedShareOption, Template, TrustOption

if TYPE_CHECKING:
    from tokenclean.report.tables import Table
    from tokenclean.tokens.audit import AuditReport, CheckResult, Example, Piece

COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
TRAINED, AT_FAULT = ("⟦", "⟧"), ("‹", "›")


@takes_intake
def audit(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A pool, in any form that score takes, or rows of input_ids and labels."),
    ],
    model: Annotated[str, typer.Option(help="Model whose tokenizer (and chat template) to use.")],
    template: Annotated[
        Template | None,
        typer.Option(
            help="tulu (the paper's, the default), or the tokenizer's own chat template; tokenized rows are then "
            "expected to show a template."
        ),
    ] = None,
    max_length: LengthOption = 2048,
    date: DateOption = DEFAULT_DATE,
    checks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Only these checks; repeatable, or with commas."),
    ] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Stop reading after this many rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    max_rejected_share: RejectedShareOption = 0.05,
    trust_remote_code: TrustOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Look for faults of the labels that a training would learn: prompts trained on, answers without an end, labels
    shifted by one, templates applied twice, and more.

    Conversations are rendered, tokenized and labelled as a run would do it; rows of input_ids and labels are checked
    as they are, whichever tool wrote them. Every fault has a count, three examples and a remedy; rows set aside, keys
    not used and what was done to rows are counted. Exit code 2 where a run would refuse the data, else 1 where an
    error is found, 0 for none or warnings only.

    Example: tokenclean audit my.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --template tokenizer
    """
    from tokenclean.tokens.audit import audit_sources, check_names

    names = check_names([name.strip() for names in checks or [] for name in names.split(",")])
    sources = sources_of([data], intake)

    from tokenclean.models.loading.load import load_tokenizer, resolve_source
    from tokenclean.pool import check_usable

    quiet_libraries()
    report = audit_sources(
        sources,
        load_tokenizer(resolve_source(model, trusted=tuple(trust_remote_code or ()))),
        template=template.value if template else None,
        max_length=max_length,
        date=date,
        checks=names,
        max_rows=max_rows,
    )
    if as_json:
        typer.echo(json.dumps({"data": data, "model": model, **report.to_json()}, indent=2))
    else:
        _print(report, data)
    check_usable(report.intake, max_rejected_share, are_reasons_shown=not as_json)
    if report.has_errors:
        raise typer.Exit(1)


def _print(report: AuditReport, data: str) -> None:
    shown = f"{data}: {report.rows:,} rows, {report.tokens:,} tokens, {report.targets:,} of them trained"
    if report.tokenized:
        family = f", {report.family} template" if report.family else ""
        shown += f"; {report.tokenized:,} rows came tokenized{family}"
    out.print(shown, soft_wrap=True)
    out.print()
    out.print(_table(report).to_rich())
    for reason, names in _unjudged(report).items():
        out.print(f"not judged: {', '.join(names)}: {reason}", soft_wrap=True)
    print_intake(report.intake)
    if not report.found:
        if not report.intake.set_aside:
            out.print("nothing found", style="green", soft_wrap=True)
        return
    out.print()
    if out.is_terminal:
        out.print(Text.assemble("in the examples ", ("trained", "green"), " and ", ("at fault", "reverse")))
    else:
        out.print(f"in the examples {TRAINED[0]}trained{TRAINED[1]} and {AT_FAULT[0]}at fault{AT_FAULT[1]}")
    for result in report.found:
        _print_finding(result)


def _table(report: AuditReport) -> Table:
    from tokenclean.report.tables import Table, share_text

    rows = []
    for result in report.results:
        unjudged = sum(result.unjudged.values())
        share = share_text(result.share) if result.rows else share_text(None)
        rows.append((result.name, result.severity, f"{result.rows:,}", share, f"{unjudged:,}" if unjudged else ""))
    return Table("Audit", ("check", "severity", "rows", "share", "not judged"), tuple(rows), text_columns=(0, 1))


def _unjudged(report: AuditReport) -> dict[str, list[str]]:
    """Reason -> the checks that it kept from telling, each with its rows."""
    reasons: dict[str, list[str]] = {}
    for result in report.results:
        for reason, rows in result.unjudged.items():
            reasons.setdefault(reason, []).append(f"{result.name} ({rows:,} row{'s' * (rows > 1)})")
    return reasons


def _print_finding(result: CheckResult) -> None:
    out.print()
    rows = f"{result.rows:,} row{'s' * (result.rows > 1)}"
    heading = Text.assemble((f"{result.severity}: {result.name}", COLOURS[result.severity]), f", {rows}")
    out.print(heading, soft_wrap=True)
    out.print(f"  {result.meaning}", soft_wrap=True)
    for example in result.examples:
        last = example.end - 1
        span = f", tokens {example.start}–{last}" if last > example.start else f", token {last}" if example.end else ""
        name = example.row if example.row == example.place else f"{example.row} ({example.place})"
        out.print(f"  {name}{span}: {_visible(example.text)}", soft_wrap=True)
        out.print(_marked(example), soft_wrap=True)
    out.print(f"  remedy: {result.remedy}", soft_wrap=True)


def _marked(example: Example) -> Text:
    text = Text("    " if example.starts_row else "    …", style="default")
    for piece in example.pieces:
        if out.is_terminal:
            text.append(_visible(piece.text), style=_style(piece))
        else:
            shown = _visible(piece.text)
            shown = shown.join(AT_FAULT) if piece.is_at_fault else shown
            text.append(shown.join(TRAINED) if piece.is_trained else shown)
    return text if example.ends_row else text.append("…")


def _style(piece: Piece) -> str:
    style = "bold green" if piece.is_trained else "dim"
    return f"{style} reverse" if piece.is_at_fault else style


def _visible(text: str) -> str:
    """One line: a line break is a fault or none, so it has to be seen; and a text must not steer the terminal."""
    text = text.replace("\n", "↵").replace("\t", "⇥")
    return "".join("�" if ord(sign) < 32 or 127 <= ord(sign) < 160 else sign for sign in text)
