"""The label audit of what a trainer would train: the checks of rows with labels, and what the trainer did to rows."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tokenclean.checks.findings import EXAMPLES
from tokenclean.integrations.trainer_rows import TokenRow, TrainerRows
from tokenclean.integrations.weighted_rows import UNTRAINED
from tokenclean.pool import Conversation
from tokenclean.pool.conversation import LabelledTokens
from tokenclean.tokens.audit import AuditReport, CheckResult, Example, Piece, audit_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_CUT = 1 << 30
_SHOWN = 24  # tokens of an example


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
    found: dict[str, list[Example]] = {name: [] for name in TRAINER_CHECKS}
    for name, number, text, first in _faults(rows, numbers):
        row = rows.fed[number] if name == "rows_joined" else rows.whole[number]
        found[name].append(_example(row, f"{path}:{number + 1}", text, first, tokenizer))
    judged = len(rows.fed) if rows.joins_rows else len(rows.whole)
    added = tuple(_result(name, examples, judged) for name, examples in found.items())
    return replace(report, results=report.results + added)


def _row_numbers(rows: TrainerRows) -> list[int]:
    """The row of the file that each fed row is, cut or whole."""
    waiting: dict[bytes, deque[int]] = defaultdict(deque)
    for number, row in enumerate(rows.whole):
        waiting[row.input_ids[: rows.max_length].tobytes()].append(number)
    return [waiting[row.input_ids.tobytes()].popleft() for row in rows.fed]


def _faults(rows: TrainerRows, numbers: Sequence[int]) -> list[tuple[str, int, str, int]]:
    """(check, row, what it is, first token at fault) of every finding, in the order of rows."""
    if rows.joins_rows:
        return [
            ("rows_joined", number, f"a pack of {len(row.input_ids):,} tokens", 0)
            for number, row in enumerate(rows.fed)
        ]
    fed = dict(zip(numbers, rows.fed, strict=True))
    faults = []
    for number, row in enumerate(rows.whole):
        targets = int((row.labels[1:] != UNTRAINED).sum())
        if number not in fed:
            faults.append(("row_dropped", number, f"{len(row.input_ids):,} tokens, {targets:,} of them trained", 0))
            continue
        labels = fed[number].labels
        kept = row.labels[: len(labels)]
        if lost := int((row.labels[len(labels) :] != UNTRAINED).sum()):
            text = f"cut at {len(labels):,} of {len(row.input_ids):,} tokens; {lost:,} of {targets:,} targets are lost"
            faults.append(("row_cut", number, text, len(labels)))
        masked = np.flatnonzero((kept != UNTRAINED) & (labels == UNTRAINED))
        masked = masked[masked > 0]  # a row's first token is never trained
        if len(masked):
            faults.append(("target_masked", number, f"{len(masked):,} targets are masked", int(masked[0])))
    return faults


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


def _example(row: TokenRow, place: str, text: str, first: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    start = max(0, first - _SHOWN // 2)
    shown = slice(start, start + _SHOWN)
    pieces = []
    for span, is_at_fault in ((slice(start, first), False), (slice(first, start + _SHOWN), True)):
        ids = row.input_ids[span].tolist()
        if ids:
            pieces.append(Piece(tokenizer.decode(ids), bool((row.labels[span] != UNTRAINED).any()), is_at_fault))
    ends = shown.stop >= len(row.input_ids)
    return Example(place, place, text, first, len(row.input_ids), tuple(pieces), start == 0, ends)


def _result(name: str, examples: Sequence[Example], rows: int) -> CheckResult:
    check = TRAINER_CHECKS[name]
    share = len(examples) / rows if rows else 0.0
    shown = tuple(examples[:EXAMPLES])
    return CheckResult(
        name, check.severity, len(examples), share, len(examples), shown, {}, check.meaning, check.remedy
    )
