"""The audit: every check on every row, counted, with its first examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from tokenclean.checks import Found, Group, PoolChecks
from tokenclean.checks.findings import EXAMPLES, Severity
from tokenclean.errors import RecipeError
from tokenclean.pool import Conversation, Intake, Pool
from tokenclean.pool.duplicates import content_key
from tokenclean.recipe import SourceSettings
from tokenclean.recipe.error_messages import did_you_mean
from tokenclean.tokens.audit.audit_row import AuditRow
from tokenclean.tokens.audit.checks import CHECKS
from tokenclean.tokens.audit.dataset_facts import Facts
from tokenclean.tokens.audit.findings import Example, RowResult, Unjudged, make_example, show_text
from tokenclean.tokens.audit.reading import RowReader
from tokenclean.tokens.audit.vocabulary import Vocabulary
from tokenclean.tokens.templates import check_template
from tokenclean.tokens.tokenizer_template.chat import DEFAULT_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_ROWS = 1000  # from which the facts are taken


@dataclass(frozen=True)
class CheckResult:
    """What one check found. ``rows``: rows with a finding; ``share``: of all rows; ``places``: spans at fault in them.
    ``unjudged``: reason -> rows that the check cannot judge. ``groups``: of a check that groups rows, the largest
    first. ``note``: what was not looked at."""

    name: str
    severity: Severity
    rows: int
    share: float
    places: int
    examples: tuple[Example, ...]
    unjudged: dict[str, int]
    meaning: str
    remedy: str
    groups: tuple[Group, ...] = ()
    note: str = ""


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
        """Check -> rows, for those with at least one."""
        return {result.name: result.rows for result in self.found}

    @property
    def has_errors(self) -> bool:
        return any(result.severity == "error" for result in self.found)

    def to_json(self) -> dict[str, object]:
        """The report as JSON can hold it."""
        values = asdict(replace(self, intake=Intake()))
        return values | {"has_errors": self.has_errors, "intake": self.intake.to_json()}


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
    """Audit files and Hub datasets, in the memory of a batch of rows, 16 bytes a row, and what the checks of all rows
    together keep (about 1 kB a row).

    Conversations are rendered by ``template`` (tulu for None), tokenized and labelled as a run would do it; plain text
    is trained throughout. Rows of ``input_ids`` and ``labels`` keep them; a ``template`` given then says that they
    should show role markers. ``max_length``: tokens at which a row is cut. ``date``: today, for templates that ask.
    ``checks``: names in CHECKS, all if empty. ``max_rows``: stop reading after so many.

    Raises PoolError for a file that cannot be read or holds no row, TemplateError for a tokenizer that cannot serve the
    template, RecipeError for an unknown check, ValueError for max_length < 2.
    """
    audit = _Audit(tokenizer, template, max_length, date, checks)
    return audit.report(audit.reader.read_sources(sources, max_rows))


def audit_pool(
    pool: Pool | Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None = None,
    max_length: int = 2048,
    date: str = DEFAULT_DATE,
    checks: Sequence[str] = (),
) -> AuditReport:
    """Audit conversations in memory; options and errors as for ``audit_sources``."""
    audit = _Audit(tokenizer, template, max_length, date, checks)
    return audit.report(audit.reader.read_pool(pool))


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The checks asked for in the order of CHECKS, all if none is named. Raises RecipeError for unknown names."""
    problems = []
    for name in names:
        if name not in CHECKS:
            expected = f"expected names of {', '.join(CHECKS)}{did_you_mean(name, CHECKS)}"
            problems.append(f"checks: found {name!r}, {expected}")
    if problems:
        raise RecipeError(problems, "options")
    return tuple(name for name in CHECKS if name in names or not names)


class _Audit:
    """Options of an audit, checked, and the reader of its rows."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        max_length: int,
        date: str,
        checks: Sequence[str],
    ) -> None:
        self._checks, self._template = check_names(checks), template
        check_template(tokenizer, template or "tulu")
        self.reader = RowReader(Vocabulary(tokenizer), template or "tulu", max_length, date)

    def report(self, rows: Iterable[AuditRow]) -> AuditReport:
        """Run the checks. The facts of the data as a whole are taken from the first SAMPLE_ROWS."""
        vocabulary, rows = self.reader.vocabulary, iter(rows)
        sample = list(islice(rows, SAMPLE_ROWS))
        facts = Facts.of(sample, vocabulary, max_length=self.reader.max_length, template=self._template)
        finders = {name: find for name in self._checks if (find := CHECKS[name].find)}
        tallies = {name: _Tally() for name in finders}
        texts = PoolChecks(name for name in self._checks if name not in finders)
        count = tokenized = tokens = targets = 0
        rows = map(facts.complete, chain(sample, rows))
        for row in _with_twins(rows) if "duplicated" in tallies else rows:
            count += 1
            tokenized += row.kind == "tokens"
            tokens += len(row)
            targets += int(row.is_response.sum())
            for name, tally in tallies.items():
                tally.add(finders[name](row, facts), row, vocabulary)
            if row.conversation:
                texts.add(row.conversation)
        results = {name: tally.result(name, count) for name, tally in tallies.items()}
        results |= {name: _text_result(name, found, count) for name, found in texts.found().items()}
        ordered, intake = tuple(results[name] for name in self._checks), self.reader.intake
        return AuditReport(count, tokenized, tokens, targets, facts.family, facts.is_selected, ordered, intake)


@dataclass
class _Tally:
    rows: int = 0
    places: int = 0
    examples: list[Example] = field(default_factory=list)
    unjudged: Counter[str] = field(default_factory=Counter)

    def add(self, result: RowResult, row: AuditRow, vocabulary: Vocabulary) -> None:
        if isinstance(result, Unjudged):
            self.unjudged[result.reason] += 1
        elif result is not None:
            self.rows += 1
            self.places += max(1, len(result.spans))
            if len(self.examples) < EXAMPLES:
                self.examples.append(make_example(result, row, vocabulary))

    def result(self, name: str, rows: int) -> CheckResult:
        check, share = CHECKS[name], self.rows / rows if rows else 0.0
        examples, unjudged = tuple(self.examples), dict(self.unjudged)
        return CheckResult(
            name, check.severity, self.rows, share, self.places, examples, unjudged, check.meaning, check.remedy
        )


def _text_result(name: str, found: Found, rows: int) -> CheckResult:
    check, share, examples = CHECKS[name], found.rows / rows if rows else 0.0, tuple(map(show_text, found.examples))
    return CheckResult(
        name,
        check.severity,
        found.rows,
        share,
        found.rows,
        examples,
        {},
        check.meaning,
        check.remedy,
        found.groups,
        found.note,
    )


def _with_twins(rows: Iterable[AuditRow]) -> Iterator[AuditRow]:
    """Each row with the id of the first one that holds the same."""
    seen: dict[bytes, str] = {}
    for row in rows:
        first = seen.setdefault(_digest(row), row.id) if len(row) else row.id
        yield row if first is row.id else replace(row, twin=first)


def _digest(row: AuditRow) -> bytes:
    """16 bytes for what the row says; case and spaces of a conversation say nothing."""
    if row.conversation:
        return content_key(row.conversation)
    return hashlib.blake2b(row.input_ids.tobytes() + row.labels.tobytes(), digest_size=16).digest()
