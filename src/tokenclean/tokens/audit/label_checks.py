"""Checks of the labels: which tokens are targets, and which should be.

Every function takes a row and the facts of the data and returns a Finding, None for a sound row or one that it does not
concern, or Unjudged if the row does not show it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from tokenclean.tokens.audit.audit_row import UNTRAINED, Answer, AuditRow, runs_of
from tokenclean.tokens.audit.dataset_facts import Facts, ends_open, has_gaps
from tokenclean.tokens.audit.findings import (
    BLANK_RESPONSE,
    NO_MARKERS,
    NOT_TRAINED,
    SELECTED,
    Finding,
    RowResult,
    Unjudged,
)
from tokenclean.tokens.rendered_text import leading_blanks

# A template may write the tags of the thoughts itself, before the model begins to write.
_THOUGHTS = (re.compile(r"\s*<think>\s*"), re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL))


@dataclass
class _Faults:
    """The faults of a row's answers, for one verdict. ``is_unsure``: one of them may be token selection."""

    texts: dict[str, None] = field(default_factory=dict)
    spans: list[tuple[int, int]] = field(default_factory=list)
    is_unsure: bool = False

    def add(self, text: str, *spans: tuple[int, int]) -> None:
        self.texts[text] = None
        self.spans += spans

    def result(self) -> RowResult:
        if self.spans:
            return Finding("; ".join(self.texts), tuple(sorted(self.spans)))
        return Unjudged(SELECTED) if self.is_unsure else None


def find_trained_prompt(row: AuditRow, facts: Facts) -> RowResult:
    """Targets outside every answer and its role marker.

    Blanks beside an answer are left to ``find_misplaced_blank``, the marker in front of one to
    ``find_boundary_drift``.
    """
    if not row.is_response.any():
        return None
    if row.answers is None:
        return Unjudged(NO_MARKERS)
    outside = row.is_response & ~row.is_blank
    for answer in row.answers:
        outside &= ~row.tokens_in(answer.head, answer.end)
    if not outside.any():
        return None
    return Finding(f"{_count(outside)} of the prompt trained", tuple(runs_of(outside)))


def find_cut_end(row: AuditRow, facts: Facts) -> RowResult:
    """Answers whose last target is not an end token, although nothing was cut off at a maximum length."""
    if not row.is_response.any():
        return None
    if row.answers is None:
        return _find_cut_last_run(row, facts)
    faults = _Faults()
    for answer in row.answers:
        targets = row.targets_of(answer)
        if not len(targets) or answer.end > row.covered:
            continue  # not trained, or cut away with what follows
        last = int(targets[-1])
        closing = row.token_span(answer.closing, answer.end) if answer.is_closed else None
        if closing is None:
            if not (answer is row.answers[-1] and _is_truncated(row, facts)):
                faults.add("no end token follows the answer", (last, last + 1))
        elif not row.is_response[slice(*closing)].any():
            if facts.is_selected or row.has_gaps:
                faults.is_unsure = True
            else:
                faults.add("the end token behind the answer is masked", (last, closing[1]))
    return faults.result()


def _find_cut_last_run(row: AuditRow, facts: Facts) -> RowResult:
    """Without role markers the last run of targets is what is left of the last answer."""
    _, end = row.runs()[-1]
    if int(row.input_ids[end - 1]) in facts.vocabulary.ends or _is_truncated(row, facts):
        return None
    if facts.is_selected or has_gaps(row, facts):
        return Unjudged(SELECTED)
    if row.is_response[1:].all():
        return Unjudged("every token is trained, as of plain text, which may go on in the next row")
    following = row.input_ids[end : end + 1].tolist()
    masked = bool(following) and following[0] in facts.vocabulary.ends
    text = "the end token behind the answer is masked" if masked else "no end token follows the answer"
    return Finding(text, ((end - 1, end + masked),))


def find_all_masked(row: AuditRow, facts: Facts) -> RowResult:
    """Rows without any target that could be trained; ``find_truncated`` reports what a cut took away."""
    if row.fault.endswith(NOT_TRAINED):
        return Finding("every assistant turn is marked as not trained")
    if row.fault or row.is_response.any() or _lost_targets(row, facts):
        return None
    only_first = bool(len(row)) and int(row.labels[0]) != UNTRAINED
    text = "the one label is that of the first token, which follows nothing" if only_first else "no label is set"
    return Finding(text, ((0, len(row)),))


def find_shift(row: AuditRow, facts: Facts) -> RowResult:
    """Labels that are the ids of the neighbouring tokens: the model shifts them once more."""
    if not row.shift:
        return None
    neighbour = "next" if row.shift == 1 else "previous"
    targets = row.labels != UNTRAINED
    return Finding(f"labels are the ids of the {neighbour} token ({_count(targets)})", tuple(runs_of(targets)))


def find_foreign_label(row: AuditRow, facts: Facts) -> RowResult:
    """Labels that are neither −100 nor the id of their token, nor shifted."""
    foreign = row.is_foreign
    if not foreign.any():
        return None
    first = int(np.argmax(foreign))
    found = f"label {row.labels[first]} on a token whose id is {row.input_ids[first]}"
    if row.ignored_label is not None:
        return Finding(f"{_count(foreign)} with label {row.ignored_label} in place of -100", tuple(runs_of(foreign)))
    return Finding(f"{_count(foreign)} with a label of its own, the first {found}", tuple(runs_of(foreign)))


def find_trained_padding(row: AuditRow, facts: Facts) -> RowResult:
    """Labels on padding: where ``attention_mask`` is 0, or on pad tokens after the first end token at the end."""
    count = row.padding_targets
    if not count:
        return None
    last = max(len(row) - 1, 0)
    return Finding(f"{count:,} padding position{'s' * (count > 1)} with a label", ((last, len(row)),))


def find_boundary_drift(row: AuditRow, facts: Facts) -> RowResult:
    """A label boundary that is not the answer's beginning, by tokens that are no blanks.

    Targets in the role marker, a first target that holds characters of the prompt too, or a masked beginning.
    """
    if not row.is_response.any():
        return None
    if row.answers is None:
        return Unjudged(NO_MARKERS)
    faults = _Faults()
    for answer in row.answers:
        targets = row.targets_of(answer)
        if not len(targets):
            continue
        inside = row.tokens_in(answer.start, answer.end)
        marker = row.tokens_in(answer.head, answer.start) & ~inside & row.is_response & ~row.is_blank
        # If the targets begin further up, the prompt is trained and its marker with it.
        if marker.any() and not row.is_response[max(0, int(np.argmax(marker)) - 1)]:
            faults.add("the role marker is trained", *runs_of(marker))
        first = _first_tokens(row, answer)
        if first is None or first[0] == 0:  # nothing but an end token, or the first token, which has no loss
            continue
        if row.is_response[slice(*first)].all():
            if row.text[row.spans[first[0], 0] : answer.start].strip():
                faults.add("the first target holds characters of the prompt too", first)
        elif facts.is_selected or row.has_gaps:
            faults.is_unsure = True
        elif not _begins_behind_thoughts(row, answer, int(row.spans[targets[0], 0])):
            faults.add("the beginning of the answer is masked", (first[0], max(int(targets[0]), first[0] + 1)))
    return faults.result()


def find_misplaced_blank(row: AuditRow, facts: Facts) -> RowResult:
    """Blanks at the edge of an answer on the wrong side of the label boundary.

    An answer's own line breaks that share a token with the template's, and trained blanks of the template.
    """
    if not row.is_response.any() or row.answers is None:
        return None
    inside = np.zeros(len(row), dtype=bool)
    straddling = np.zeros(len(row), dtype=bool)
    for answer in row.answers:
        own = row.tokens_in(answer.start, answer.end)
        if (own & row.is_response).any():
            straddling |= own & (row.spans[:, 0] < answer.start) & row.is_blank
        inside |= own
    outside = row.is_response & ~inside
    is_reported = bool((outside & ~row.is_blank).any())  # as a trained prompt or marker, which the blanks belong to
    misplaced = straddling if is_reported else straddling | outside
    if not misplaced.any():
        return None
    return Finding(f"{_count(misplaced)} of blanks beside an answer", tuple(runs_of(misplaced)))


def find_truncated(row: AuditRow, facts: Facts) -> RowResult:
    """Rows that lose an answer or its end at the maximum length."""
    last = max(len(row) - 1, 0)
    if lost := _lost_targets(row, facts):
        return Finding(lost, ((last, len(row)),))
    if row.kind == "tokens" and _is_truncated(row, facts):
        return Finding(f"ends at {len(row):,} tokens within the answer", ((last, len(row)),))
    return None


def find_empty_answer(row: AuditRow, facts: Facts) -> RowResult:
    """Answers without any text: the model learns to stop at once."""
    if row.fault.endswith(BLANK_RESPONSE):  # the pool's reading sets such a row aside
        return Finding(row.fault)
    for turn in row.turns:
        if turn.role == "assistant" and turn.is_trained and not turn.content.strip() and not turn.tool_calls:
            return Finding("blank response")
    if row.kind != "tokens" or not row.is_response.any():
        return None
    if row.answers is None:
        return _find_empty_targets(row, facts)
    spans = [
        span
        for answer in row.answers
        if len(row.targets_of(answer)) and not _without_thoughts(row.text[answer.start : answer.closing])
        if (span := row.token_span(answer.start, answer.end))
    ]
    return Finding("the answer is its end token alone", tuple(spans)) if spans else None


def _find_empty_targets(row: AuditRow, facts: Facts) -> RowResult:
    says_something = row.is_response & ~row.is_blank & ~np.isin(row.input_ids, list(facts.vocabulary.ends))
    if says_something.any():
        return None
    if facts.is_selected or has_gaps(row, facts):
        return Unjudged(SELECTED)
    return Finding("the answer is its end token alone", tuple(row.runs()))


def _is_truncated(row: AuditRow, facts: Facts) -> bool:
    """Whether the row ends within an answer at a length at which rows are cut."""
    return len(row) in facts.cut_lengths and ends_open(row, facts)


def _lost_targets(row: AuditRow, facts: Facts) -> str:
    """Which targets are lost behind the maximum length, in words; empty if none are."""
    if row.is_cut:
        lost = sum(answer.end > row.covered for answer in row.answers or ())
        return f"cut at {facts.max_length:,} tokens: {lost} answer{'s' * (lost > 1)} cut or lost" if lost else ""
    if len(row) > facts.max_length and row.kind == "tokens":
        lost = int(row.is_response[facts.max_length :].sum())
        return f"{lost:,} targets are behind the maximum of {facts.max_length:,} tokens" if lost else ""
    return ""


def _first_tokens(row: AuditRow, answer: Answer) -> tuple[int, int] | None:
    """Token span of the answer's first character that is no blank; None if there is none."""
    content = row.text[answer.start : answer.closing]
    first = answer.start + leading_blanks(content)
    return row.token_span(first, first + 1) if content.strip() else None


def _begins_behind_thoughts(row: AuditRow, answer: Answer, begun: int) -> bool:
    """Whether the first target, at character ``begun``, is the first token after the tag that opens the thoughts, or
    after the thoughts."""
    matches = [pattern.match(row.text, answer.start, answer.end) for pattern in _THOUGHTS]
    return any(match and answer.start + len(match[0].rstrip()) <= begun <= match.end() for match in matches)


def _without_thoughts(content: str) -> str:
    return re.sub(r"<think>\s*</think>", "", content).strip()


def _count(flags: np.ndarray) -> str:
    count = int(flags.sum())
    return f"{count:,} token{'s' * (count != 1)}"
