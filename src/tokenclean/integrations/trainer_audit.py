"""The label audit of what a trainer would train: the checks of rows with labels, and what the trainer did to rows."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenclean.checks.findings import EXAMPLES
from tokenclean.integrations.trainer_rows import TokenRow, TrainerRows
from tokenclean.integrations.weighted_rows import UNTRAINED
from tokenclean.pool import Conversation
from tokenclean.pool.conversation import LabelledTokens
from tokenclean.tokens.audit import AuditReport, CheckResult, Example, audit_pool
from tokenclean.tokens.audit.audit_row import AuditRow, runs_of
from tokenclean.tokens.audit.findings import Finding, make_example
from tokenclean.tokens.audit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_CUT = 1 << 30


@dataclass(frozen=True)
class TrainerCheck:
    """As a ``Check`` of the audit, for what becomes of whole rows."""

    severity: Literal["error", "warning"]
    meaning: str
    remedy: str


TRAINER_CHECKS = {
    "row_dropped": TrainerCheck(
        "error",
        "the trainer leaves the row out: nothing of it is left to train on within its maximum length",
        "raise the trainer's max_length, or shorten the row's prompt",
    ),
    "row_cut": TrainerCheck(
        "error",
        "the trainer cuts tokens off the row that it would have trained",
        "set the trainer's max_length to the longest row's length, or split the row",
    ),
    "target_masked": TrainerCheck(
        "error",
        "a token that has a label before collation has none in the batch: the collator masks every token with the id "
        "of padding, and padding is also what ends an answer",
        "give the tokenizer a pad token of its own, or take a collator that masks by position",
    ),
    "rows_joined": TrainerCheck(
        "error",
        "rows of one pack see each other: the pack has no boundaries, and a row's first tokens are predicted from the "
        "row before",
        "take a packing that keeps positions for each row (TRL: packing_strategy='bfd'), or none",
    ),
}


def audit_trainer(rows: TrainerRows, tokenizer: PreTrainedTokenizerBase, path: Path) -> AuditReport:
    """All checks of labelled rows on the rows that the trainer feeds, then those of TRAINER_CHECKS.

    ``path``: the file that they came from, for the places of findings. A row of packs that join rows is a pack.
    """
    numbers = list(range(len(rows.fed))) if rows.joins_rows else _row_numbers(rows)
    pool = [_conversation(row, number, path) for row, number in zip(rows.fed, numbers, strict=True)]
    report = audit_pool(pool, tokenizer, max_length=rows.max_length or _NO_CUT)
    vocabulary = Vocabulary(tokenizer)
    found: dict[str, list[Example]] = {name: [] for name in TRAINER_CHECKS}
    for name, number, finding in _findings(rows, numbers):
        row, place = (rows.fed if rows.joins_rows else rows.whole)[number], f"{path}:{number + 1}"
        text, spans = vocabulary.spell(row.input_ids)
        audited = AuditRow(place, place, "tokens", row.input_ids, row.labels, spans, text)
        found[name].append(make_example(finding, audited, vocabulary))
    judged = len(rows.fed) if rows.joins_rows else len(rows.whole)
    added = tuple(_result(name, examples, judged) for name, examples in found.items())
    return replace(report, results=report.results + added)


def _row_numbers(rows: TrainerRows) -> list[int]:
    """The row of the file that each fed row is, cut or whole."""
    waiting: dict[bytes, deque[int]] = defaultdict(deque)
    for number, row in enumerate(rows.whole):
        waiting[row.input_ids[: rows.max_length].tobytes()].append(number)
    return [waiting[row.input_ids.tobytes()].popleft() for row in rows.fed]


def _findings(rows: TrainerRows, numbers: Sequence[int]) -> Iterator[tuple[str, int, Finding]]:
    """(check, row, finding), in the order of rows."""
    if rows.joins_rows:
        for number, row in enumerate(rows.fed):
            yield "rows_joined", number, Finding(f"a pack of {len(row.input_ids):,} tokens")
        return
    fed = dict(zip(numbers, rows.fed, strict=True))
    for number, row in enumerate(rows.whole):
        tokens = len(row.input_ids)
        is_target = row.labels != UNTRAINED
        is_target[:1] = False  # nothing is before a row's first token
        targets = int(is_target.sum())
        if number not in fed:
            yield "row_dropped", number, Finding(f"{tokens:,} tokens, {targets:,} of them trained")
            continue
        labels = fed[number].labels
        if lost := int(is_target[len(labels) :].sum()):
            text = f"cut at {len(labels):,} of {tokens:,} tokens; {lost:,} of {targets:,} targets are lost"
            yield "row_cut", number, Finding(text, ((len(labels), tokens),))
        if spans := runs_of(is_target[: len(labels)] & (labels == UNTRAINED)):
            yield "target_masked", number, Finding(f"{sum(b - a for a, b in spans):,} targets are masked", tuple(spans))


def _conversation(row: TokenRow, number: int, path: Path) -> Conversation:
    is_response = row.labels != UNTRAINED
    is_response[:1] = False
    return Conversation(
        id=f"{path.name}:{number + 1}",
        source=path.name,
        turns=(),
        kind="tokens",
        file=str(path),
        line=number + 1,
        tokens=LabelledTokens(row.input_ids, is_response),
    )


def _result(name: str, examples: Sequence[Example], rows: int) -> CheckResult:
    check = TRAINER_CHECKS[name]
    share = len(examples) / rows if rows else 0.0
    shown = tuple(examples[:EXAMPLES])
    return CheckResult(
        name, check.severity, len(examples), share, len(examples), shown, {}, check.meaning, check.remedy
    )
