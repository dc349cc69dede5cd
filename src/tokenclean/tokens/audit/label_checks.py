"""Checks of the labels: which tokens are targets, and which should be.

Every function takes a row and the facts of the data and gives a Finding, None for a sound row or one that it does not
concern, or Unjudged where nobody can tell.
"""

from __future__ import annotations

import re

import numpy as np

from tokenclean.tokens.audit.audit_row import UNTRAINED, Answer, AuditRow, runs_of
from tokenclean.tokens.audit.dataset_facts import Facts, ends_open, has_gaps
from tokenclean.tokens.audit.findings import NO_MARKERS, SELECTED, Finding, Unjudged, Verdict

# A template may write the tags of the thoughts itself, in front of where the model begins.
_THOUGHTS = (re.compile(r"\s*<think>\s*"), re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL))


def find_trained_prompt(row: AuditRow, facts: Facts) -> Verdict:
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


def find_cut_end(row: AuditRow, facts: Facts) -> Verdict:
    """Answers whose last target is not an end token, although nothing was cut off at a maximum length."""
    if not row.is_response.any():
        return None
    if row.answers is None:
        return _find_cut_last_run(row, facts)
    spans, texts, is_unsure = [], [], False
    for answer in row.answers:
        targets = np.flatnonzero(row.tokens_in(answer.start, answer.end) & row.is_response)
        if not len(targets) or answer.end > row.covered:
            continue  # not trained, or cut away with what follows
        if answer.is_closed:
            closing = row.tokens_in(answer.closing, answer.end)
            if row.is_response[closing].any():
                continue
            if facts.is_selected or row.has_gaps:
                is_unsure = True
                continue
            spans.append((int(targets[-1]), int(np.flatnonzero(closing)[-1]) + 1))
            texts.append("the end token behind the answer is masked")
        elif not (answer is row.answers[-1] and _is_truncated(row, facts)):
            spans.append((int(targets[-1]), int(targets[-1]) + 1))
            texts.append("no end token stands behind the answer")
    if spans:
        return Finding("; ".join(dict.fromkeys(texts)), tuple(spans))
    return Unjudged(SELECTED) if is_unsure else None


def _find_cut_last_run(row: AuditRow, facts: Facts) -> Verdict:
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
    text = "the end token behind the answer is masked" if masked else "no end token stands behind the answer"
    return Finding(text, ((end - 1, end + masked),))


def find_all_masked(row: AuditRow, facts: Facts) -> Verdict:
    """Rows without any target that could be trained; what a cut took away is told by ``find_truncated``."""
    if row.fault.endswith("every assistant turn is marked as not trained, so there is no response to train on"):
        return Finding("every assistant turn is marked as not trained")
    if row.fault or row.is_response.any() or _lost_targets(row, facts):
        return None
    only_first = bool(len(row)) and int(row.labels[0]) != UNTRAINED
    text = "the one label stands on the first token, which follows nothing" if only_first else "no label is set"
    return Finding(text, ((0, len(row)),))


def find_shift(row: AuditRow, facts: Facts) -> Verdict:
    """Labels that are the ids of the neighbouring tokens: the model shifts them once more."""
    if not row.shift:
        return None
    neighbour = "next" if row.shift == 1 else "previous"
    targets = row.labels != UNTRAINED
    return Finding(f"labels are the ids of the {neighbour} token ({_count(targets)})", tuple(runs_of(targets)))


def find_foreign_label(row: AuditRow, facts: Facts) -> Verdict:
    """Labels that are neither −100 nor the id of their token, nor shifted."""
    foreign = row.is_foreign
    if not foreign.any():
        return None
    first = int(np.argmax(foreign))
    found = f"label {row.labels[first]} on a token whose id is {row.input_ids[first]}"
    if row.ignored_label is not None:
        return Finding(f"{_count(foreign)} with label {row.ignored_label} in place of -100", tuple(runs_of(foreign)))
    return Finding(f"{_count(foreign)} with a label of its own, the first {found}", tuple(runs_of(foreign)))


def find_trained_padding(row: AuditRow, facts: Facts) -> Verdict:
    """Labels on padding: where ``attention_mask`` is 0, or on pad tokens at the end behind the first end token."""
    count = row.padding_targets
    if not count:
        return None
    last = max(len(row) - 1, 0)
    return Finding(f"{count:,} padding position{'s' * (count > 1)} with a label", ((last, len(row)),))


def find_boundary_drift(row: AuditRow, facts: Facts) -> Verdict:
    """A label boundary that is not the answer's beginning, by tokens that are no blanks.

    Targets in the role marker, a first target that holds characters of the prompt too, or a masked beginning.
    """
    if not row.is_response.any():
        return None
    if row.answers is None:
        return Unjudged(NO_MARKERS)
    spans, texts, is_unsure = [], [], False
    for answer in row.answers:
        inside = row.tokens_in(answer.start, answer.end)
        if not (inside & row.is_response).any():
            continue
        marker = row.tokens_in(answer.head, answer.start) & ~inside & row.is_response & ~row.is_blank
        # Where the targets come from further up, the prompt is trained and its marker with it.
        if marker.any() and not row.is_response[max(0, int(np.argmax(marker)) - 1)]:
            spans += runs_of(marker)
            texts.append("the role marker is trained")
        first = _first_tokens(row, answer)
        if first is None or first[0] == 0:  # nothing but an end token, or the first token, which has no loss
            continue
        start = int(row.spans[first[0], 0])
        if row.is_response[first].all():
            if row.text[start : answer.start].strip():
                spans.append((int(first[0]), int(first[-1]) + 1))
                texts.append("the first target holds characters of the prompt too")
        elif facts.is_selected or row.has_gaps:
            is_unsure = True
        elif not _begins_behind_thoughts(row, answer):
            begun = int(np.flatnonzero(inside & row.is_response)[0])
            spans.append((int(first[0]), max(begun, int(first[0]) + 1)))
            texts.append("the beginning of the answer is masked")
    if spans:
        return Finding("; ".join(dict.fromkeys(texts)), tuple(sorted(spans)))
    return Unjudged(SELECTED) if is_unsure else None


def find_misplaced_blank(row: AuditRow, facts: Facts) -> Verdict:
    """Blanks at the edge of an answer on the wrong side of the label boundary.

    An answer's own line breaks that share a token with the template's, and the template's blanks trained.
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
    is_told = bool((outside & ~row.is_blank).any())  # as a trained prompt or marker, which the blanks belong to
    misplaced = straddling if is_told else straddling | outside
    if not misplaced.any():
        return None
    return Finding(f"{_count(misplaced)} of blanks beside an answer", tuple(runs_of(misplaced)))


def find_truncated(row: AuditRow, facts: Facts) -> Verdict:
    """Rows that lose an answer or its end at the maximum length."""
    last = max(len(row) - 1, 0)
    if lost := _lost_targets(row, facts):
        return Finding(lost, ((last, len(row)),))
    if row.kind == "tokens" and _is_truncated(row, facts):
        return Finding(f"ends at {len(row):,} tokens within the answer", ((last, len(row)),))
    return None


def find_empty_answer(row: AuditRow, facts: Facts) -> Verdict:
    """Answers that say nothing: the model learns to stop at once."""
    if row.fault.endswith(": blank response"):  # the pool's reading sets such a row aside
        return Finding(row.fault)
    spans = []
    for turn in row.turns:
        if turn.role == "assistant" and turn.is_trained and not turn.content.strip() and not turn.tool_calls:
            return Finding("blank response")
    if row.kind != "tokens" or not row.is_response.any():
        return None
    if row.answers is None:
        return _find_empty_targets(row, facts)
    for answer in row.answers:
        inside = row.tokens_in(answer.start, answer.end)
        if (inside & row.is_response).any() and not _without_thoughts(row.text[answer.start : answer.closing]):
            places = np.flatnonzero(inside)
            spans.append((int(places[0]), int(places[-1]) + 1))
    return Finding("the answer is its end token alone", tuple(spans)) if spans else None


def _find_empty_targets(row: AuditRow, facts: Facts) -> Verdict:
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
    """What of the targets lies behind the maximum length, in words; empty where nothing does."""
    if row.is_cut:
        lost = sum(answer.end > row.covered for answer in row.answers or ())
        return f"cut at {facts.max_length:,} tokens: {lost} answer{'s' * (lost > 1)} cut or lost" if lost else ""
    if len(row) > facts.max_length and row.kind == "tokens":
        lost = int(row.is_response[facts.max_length :].sum())
        return f"{lost:,} targets lie behind the maximum of {facts.max_length:,} tokens" if lost else ""
    return ""


def _first_tokens(row: AuditRow, answer: Answer) -> np.ndarray | None:
    """Places of the tokens of the answer's first character that is no blank; None where there is none."""
    content = row.text[answer.start : answer.closing]
    if not content.strip():
        return None
    first = answer.start + len(content) - len(content.lstrip())
    places = np.flatnonzero(row.tokens_in(first, first + 1))
    return places if len(places) else None


def _begins_behind_thoughts(row: AuditRow, answer: Answer) -> bool:
    """Whether the first target is the first token behind the tag that opens the thoughts, or behind the thoughts."""
    begun = row.spans[np.flatnonzero(row.tokens_in(answer.start, answer.end) & row.is_response)[0], 0]
    for pattern in _THOUGHTS:
        if match := pattern.match(row.text, answer.start, answer.end):
            blanks = len(match[0]) - len(match[0].rstrip())
            if match.end() - blanks <= begun <= match.end():
                return True
    return False


def _without_thoughts(content: str) -> str:
    return re.sub(r"<think>\s*</think>", "", content).strip()


def _count(flags: np.ndarray) -> str:
    count = int(flags.sum())
    return f"{count:,} token{'s' * (count != 1)}"
