"""Checks of the texts and of the rows as such: templates, control tokens, repetitions, rows that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from tokenclean.checks import ROW_CHECKS, Spot
from tokenclean.pool.conversation import Conversation, Role
from tokenclean.pool.formats.field_types import lone_tag
from tokenclean.tokens.audit.audit_row import AuditRow, runs_of
from tokenclean.tokens.audit.dataset_facts import Facts
from tokenclean.tokens.audit.findings import BLANK_RESPONSE, NO_MARKERS, NOT_TRAINED, Finding, RowResult, Unjudged
from tokenclean.tokens.rendered_text import leading_blanks
from tokenclean.tokens.turn_markers import FAMILIES, choose_family, find_headers, find_nested, find_template, next_end

_HALF_ROLE = re.compile(r" ?\w*")


def find_doubled_template(row: AuditRow, facts: Facts) -> RowResult:
    """BOS twice in a row, a role marker right behind another, or a message that a template has rendered already."""
    if (place := _bos_twice(row, facts)) is not None:
        return Finding("BOS comes twice", ((place, place + 2),))
    if row.kind == "tokens":
        nested = find_nested(row.headers, row.text, choose_family(row.headers, facts.family))
        if nested is None:
            return None
        spans = _token_spans(row, nested.start, nested.end)
        return Finding(f"the marker {nested.text.strip()!r} opens a turn within a turn", spans)
    for role, text in _templated_texts(row):
        if (header := find_template(text)) is not None:
            found = f"the {role} turn is templated text already: it holds {header.text.strip()!r}"
            return Finding(found, _spans_of(row, text, header.text))
    return None


def find_missing_template(row: AuditRow, facts: Facts) -> RowResult:
    """Tokenized rows without a role marker where the other rows have them, or a template was asked for."""
    if row.kind != "tokens" or row.fault or row.answers is not None:
        return None
    return Finding("no role marker in the row", ((0, len(row)),)) if facts.expects_markers else Unjudged(NO_MARKERS)


def find_control_in_text(row: AuditRow, facts: Facts) -> RowResult:
    """Text of a message that is encoded as a token which begins, ends or opens something."""
    if row.kind == "tokens":
        return _find_stray_control(row, facts)
    return _find_special(row, facts, is_control=True)


def find_special_in_text(row: AuditRow, facts: Facts) -> RowResult:
    """Text of a message that is encoded as another special token (``<filename>``, ``<unk>``)."""
    return None if row.kind == "tokens" else _find_special(row, facts, is_control=False)


def find_lone_thought_tag(row: AuditRow, facts: Facts) -> RowResult:
    """Trained answers with a tag of thoughts that has no partner."""
    if row.kind != "tokens":
        return find_by_text(ROW_CHECKS["lone_thought_tag"].find)(row, facts)
    for answer in row.answers or ():
        # The prompt may have opened the thoughts.
        begun = "<think>" if row.text[answer.head : answer.start].rstrip().endswith("<think>") else ""
        if len(row.targets_of(answer)) and (lone := lone_tag(begun + row.text[answer.start : answer.closing])):
            start = row.text.find(lone, answer.start)
            return Finding(f"an answer with {lone} alone", _token_spans(row, start, start + len(lone)))
    return None


def find_by_text(find: Callable[[Conversation], Spot | None]) -> Callable[[AuditRow, Facts], RowResult]:
    """A check of a conversation's texts as one of its tokens; a row that came tokenized has no texts."""

    def find_in_row(row: AuditRow, facts: Facts) -> RowResult:
        spot = find(row.conversation) if row.conversation else None
        return Finding(spot.text, _spot_spans(row, spot)) if spot else None

    return find_in_row


def find_duplicate(row: AuditRow, facts: Facts) -> RowResult:
    """Rows that an earlier row says word for word; of a tokenized row, id for id and label for label."""
    return Finding(f"the same as {row.twin}") if row.twin else None


def find_unknown_id(row: AuditRow, facts: Facts) -> RowResult:
    """Ids beyond the tokenizer's vocabulary."""
    largest = facts.vocabulary.largest_id
    unknown = row.input_ids > largest
    if not unknown.any():
        return None
    found = f"id {row.input_ids[int(np.argmax(unknown))]}, but the tokenizer's ids end at {largest}"
    return Finding(found, tuple(runs_of(unknown)))


def find_set_aside(row: AuditRow, facts: Facts) -> RowResult:
    """Rows that cannot be read or rendered, for a reason that no other check reports."""
    is_reported = row.fault.endswith((BLANK_RESPONSE, NOT_TRAINED))
    return Finding(row.fault) if row.fault and not is_reported else None


def _bos_twice(row: AuditRow, facts: Facts) -> int | None:
    bos = facts.vocabulary.bos
    if bos is None:
        return None
    twice = np.flatnonzero((row.input_ids[:-1] == bos) & (row.input_ids[1:] == bos))
    if bos in facts.vocabulary.ends:  # then a sample of a pack ends and the next begins with it
        twice = twice[twice == 0]
    return int(twice[0]) if len(twice) else None


def _templated_texts(row: AuditRow) -> Iterator[tuple[Role, str]]:
    """The texts of a row to which a template is added, each with the role of its turn.

    Plain text and the prompt of a completion get no tags, so whoever wrote markers there meant them.
    """
    turns = row.turns if row.kind == "chat" else ()
    if row.kind == "completion":
        prompt, completion = row.turns
        turns = (completion,) if find_headers(prompt.content) else (completion, prompt)
    for turn in turns:
        for text in (turn.content, turn.reasoning, *(call.arguments for call in turn.tool_calls)):
            yield turn.role, text


def _find_special(row: AuditRow, facts: Facts, *, is_control: bool) -> RowResult:
    vocabulary = facts.vocabulary
    # Only what is among the ids can have been encoded as such: a few tokens, where a vocabulary has thousands.
    present = sorted(set(row.input_ids.tolist()) & vocabulary.special.keys())
    tokens = {vocabulary.special[i]: i for i in present if (i in vocabulary.control) == is_control}
    for role, text in _templated_texts(row):
        if row.kind == "completion":  # its end may have come rendered
            ended = text.rstrip()
            text = next((ended.removesuffix(token) for token in tokens if ended.endswith(token)), text)
        if found := [token for token in tokens if token in text]:
            return Finding(f"the {role} turn's text holds {', '.join(found)}", _spans_of(row, text, found[0]))
    return None


def _find_stray_control(row: AuditRow, facts: Facts) -> RowResult:
    """In a tokenized row: text that goes on behind the end of its turn, or an opening or BOS that opens no turn."""
    family = choose_family(row.headers, facts.family)
    if row.answers is None or not family:
        return Unjudged(NO_MARKERS) if len(row) else None
    places = [*_misplaced_ends(row, facts, family), *_idle_openers(row, facts)]
    if not places:
        return None
    first = min(places)
    token = facts.vocabulary.spell(row.input_ids[first : first + 1])[0]
    return Finding(f"{token} is inside the text of a turn", tuple((place, place + 1) for place in sorted(places)))


def _misplaced_ends(row: AuditRow, facts: Facts, family: str) -> Iterator[int]:
    if FAMILIES[family].is_prose:
        return  # its next sample begins with prose
    headers = [header for header in row.headers if header.family == family]
    ends = facts.end_spans(row)
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        limit = following.start if following else len(row.text)
        end = next_end(ends, header.end, limit)
        if end is None:
            is_asked = FAMILIES[family].closes_all and header.role != "assistant"
            if following and is_asked and row.text[header.end : limit].strip():
                # It is within the text of this turn, or its end would come first.
                yield _first_token(row, following.start, following.end)
            continue
        rest = row.text[end[1] : limit]
        place = end[1] + leading_blanks(rest)
        going_on = row.token_span(place, place + 1) if rest.strip() else None
        if going_on and int(row.input_ids[going_on[0]]) not in facts.vocabulary.special:
            yield _first_token(row, *end)


def _idle_openers(row: AuditRow, facts: Facts) -> Iterator[int]:
    vocabulary = facts.vocabulary
    openers = {vocabulary.added[header.opener] for header in row.headers if header.opener in vocabulary.added}
    idle = (openers if vocabulary.bos is None else openers | {vocabulary.bos}) - vocabulary.ends
    at_header = {header.start for header in row.headers}
    for place in np.flatnonzero(np.isin(row.input_ids, list(idle))).tolist():
        start, end = row.spans[place].tolist()
        if not place or start in at_header or _HALF_ROLE.fullmatch(row.text, end):
            continue  # the row's beginning, a marker, or one of which a cut has left half
        beside = row.input_ids[[place - 1, place + 1]].tolist()
        # Behind another control token a sample of a pack begins; BOS twice is the doubled template's.
        is_behind_control = beside[0] in vocabulary.special or _is_behind_end(row, facts, place)
        if row.input_ids[place] not in beside and not is_behind_control:
            yield place


def _is_behind_end(row: AuditRow, facts: Facts, place: int) -> bool:
    """Whether only blanks are between the token and an end token before it."""
    words = np.flatnonzero(~row.is_blank[:place])
    return bool(len(words)) and int(row.input_ids[words[-1]]) in facts.vocabulary.ends


def _first_token(row: AuditRow, start: int, end: int) -> int:
    return int(np.argmax(row.tokens_in(start, end)))


def _token_spans(row: AuditRow, start: int, end: int) -> tuple[tuple[int, int], ...]:
    span = row.token_span(start, end)
    return (span,) if span else ()


def _spans_of(row: AuditRow, message: str, part: str) -> tuple[tuple[int, int], ...]:
    """Tokens of the first ``part`` of a message, if both are found in the row's text; else none."""
    content = message.strip()
    start, place = row.text.find(content), content.find(part)
    return _token_spans(row, start + place, start + place + len(part)) if min(start, place) >= 0 else ()


def _spot_spans(row: AuditRow, spot: Spot) -> tuple[tuple[int, int], ...]:
    """Tokens of a spot, if the turn's content is found in the row's text; else none."""
    content = row.turns[spot.turn].content
    start = row.text.find(content.strip()) - (len(content) - len(content.lstrip()))
    return _token_spans(row, start + spot.start, start + spot.end) if content.strip() in row.text else ()
