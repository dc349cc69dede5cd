"""The audit: every check on every row, counted, with its first examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tokenclean.errors import RecipeError
from tokenclean.pool import Conversation, Intake, Pool
from tokenclean.recipe import SourceSettings
from tokenclean.tokens.audit.audit_row import AuditRow
from tokenclean.tokens.audit.checks import CHECKS
from tokenclean.tokens.audit.dataset_facts import Facts
from tokenclean.tokens.audit.examples import Example, make_example
from tokenclean.tokens.audit.finding import Finding, Severity, Unjudged
from tokenclean.tokens.audit.reading import RowCounts, rows_of_pool, rows_of_sources
from tokenclean.tokens.audit.vocabulary import Vocabulary
from tokenclean.tokens.chat_template.date import DEFAULT_DATE
from tokenclean.tokens.rendering import check_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 3
SAMPLE_ROWS = 1000  # of which the facts are taken


@dataclass(frozen=True)
class CheckResult:
    """What one check found. ``rows``: rows with a finding; ``share``: of all rows; ``places``: spans at fault in them.
    ``unjudged``: reason -> rows of which the check cannot tell."""

    name: str
    severity: Severity
    rows: int
    share: float
    places: int
    examples: tuple[Example, ...]
    unjudged: dict[str, int]
    meaning: str
    remedy: str


@dataclass(frozen=True)
class AuditReport:
    """The results of all checks that were asked for, in the order of CHECKS.

    ``rows``: all rows read; ``tokenized``: those of them that came with ids and labels; ``targets``: trained tokens;
    ``tokens``: all. ``family``: the template that the tokenized rows show, or empty. ``is_selected``: whether their
    labels look like those of token selection. ``intake``: what became of all rows that were read.
    """

    rows: int
    tokenized: int
    tokens: int
    targets: int
    family: str
    is_selected: bool
    results: tuple[CheckResult, ...]
    intake: Intake = field(default_factory=Intake)

    def __getitem__(self, name: str) -> CheckResult:
        return next(result for result in self.results if result.name == name)

    @property
    def found(self) -> tuple[CheckResult, ...]:
        """The results with at least one row."""
        return tuple(result for result in self.results if result.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by check, of those with at least one."""
        return {result.name: result.rows for result in self.found}

    @property
    def has_errors(self) -> bool:
        return any(result.severity == "error" for result in self.found)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(replace(self, intake=Intake())) | {
            "has_errors": self.has_errors,
            "intake": self.intake.to_json(),
        }


def audit_sources(
    sources: Iterable[SourceSettings],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None = None,
    max_length: int = 2048,
    date: str = DEFAULT_DATE,
    checks: Sequence[str] = (),
    max_rows: int | None = None,
) -> AuditReport:
    """Audit files and Hub datasets, in the memory of a batch of rows and 16 bytes a row.

    Conversations are rendered by ``template`` (tulu where None), tokenized and labelled as a run would do it; plain
    text is trained throughout. Rows of ``input_ids`` and ``labels`` are taken as they are; a ``template`` given then
    says that they should show role markers. ``max_length``: tokens at which a row is cut. ``date``: what a template
    that asks for today's date is told. ``checks``: names in CHECKS, all where empty. ``max_rows``: stop reading after
    so many.

    Raises PoolError for a file that cannot be read or holds no row, TemplateError for a tokenizer that cannot serve the
    template, RecipeError for an unknown check, ValueError for max_length < 2.
    """
    names, vocabulary = _prepared(tokenizer, template, checks)
    counts, template_used = RowCounts(), template or "tulu"
    rows = rows_of_sources(
        sources, vocabulary, template=template_used, max_length=max_length, date=date, counts=counts, max_rows=max_rows
    )
    report = audit_rows(rows, vocabulary, template=template, max_length=max_length, checks=names)
    return replace(report, intake=counts.intake)


def audit_pool(
    pool: Pool | Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None = None,
    max_length: int = 2048,
    date: str = DEFAULT_DATE,
    checks: Sequence[str] = (),
) -> AuditReport:
    """Audit conversations at hand; as ``audit_sources``."""
    names, vocabulary = _prepared(tokenizer, template, checks)
    counts = RowCounts()
    rows = rows_of_pool(pool, vocabulary, template=template or "tulu", max_length=max_length, date=date, counts=counts)
    report = audit_rows(rows, vocabulary, template=template, max_length=max_length, checks=names)
    return replace(report, intake=counts.intake)


def audit_rows(
    rows: Iterable[AuditRow],
    vocabulary: Vocabulary,
    *,
    template: str | None = None,
    max_length: int = 2048,
    checks: Sequence[str] = (),
) -> AuditReport:
    """Audit rows that are read already. What holds of the data as a whole is taken from the first SAMPLE_ROWS."""
    names = check_names(checks)
    rows = iter(rows)
    sample = list(islice(rows, SAMPLE_ROWS))
    facts = Facts.of(sample, vocabulary, max_length=max_length, template=template)
    tallies = {name: _Tally() for name in names}
    seen: dict[bytes, str] = {}
    count = tokenized = tokens = targets = 0
    for row in map(facts.complete, chain(sample, rows)):
        count += 1
        tokenized += row.kind == "tokens"
        tokens += len(row)
        targets += int(row.is_response.sum())
        if "duplicated" in tallies and len(row):
            digest = _digest(row)
            if digest in seen:
                row = replace(row, twin=seen[digest])
            else:
                seen[digest] = row.id
        for name, tally in tallies.items():
            tally.add(CHECKS[name].find(row, facts), row, vocabulary)
    results = tuple(tally.result(name, count) for name, tally in tallies.items())
    return AuditReport(count, tokenized, tokens, targets, facts.family, facts.is_selected, results)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The checks asked for in the order of CHECKS, all where none is named. Raises RecipeError for unknown names."""
    problems = []
    for name in names:
        if name not in CHECKS:
            close = get_close_matches(name, CHECKS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"checks: found {name!r}, expected names of {', '.join(CHECKS)}{hint}")
    if problems:
        raise RecipeError(problems, "options")
    return tuple(name for name in CHECKS if name in names or not names)


@dataclass
class _Tally:
    rows: int = 0
    places: int = 0
    examples: list[Example] = field(default_factory=list)
    unjudged: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Finding | Unjudged | None, row: AuditRow, vocabulary: Vocabulary) -> None:
        if isinstance(verdict, Unjudged):
            self.unjudged[verdict.reason] += 1
        elif verdict is not None:
            self.rows += 1
            self.places += max(1, len(verdict.spans))
            if len(self.examples) < EXAMPLES:
                self.examples.append(make_example(verdict, row, vocabulary))

    def result(self, name: str, rows: int) -> CheckResult:
        check = CHECKS[name]
        share = self.rows / rows if rows else 0.0
        return CheckResult(
            name,
            check.severity,
            self.rows,
            share,
            self.places,
            tuple(self.examples),
            dict(self.unjudged),
            check.meaning,
            check.remedy,
        )


def _prepared(
    tokenizer: PreTrainedTokenizerBase, template: str | None, checks: Sequence[str]
) -> tuple[tuple[str, ...], Vocabulary]:
    names = check_names(checks)
    check_template(tokenizer, template or "tulu")
    return names, Vocabulary.of(tokenizer)


def _digest(row: AuditRow) -> bytes:
    """16 bytes for what the row says; blanks around a message of a chat say nothing."""
    if row.kind == "tokens":
        content = row.input_ids.tobytes() + row.labels.tobytes()
    else:
        strip = str.strip if row.kind == "chat" else str
        said = [
            (turn.role, strip(turn.content), turn.reasoning.strip(), turn.is_trained, turn.name, turn.tool_calls)
            for turn in row.turns
        ]
        content = repr((row.kind, said)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()
