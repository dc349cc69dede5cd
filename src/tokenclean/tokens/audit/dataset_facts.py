"""What has to be known of the data as a whole before a single row can be judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenclean.tokens.audit.audit_row import Answer, AuditRow
from tokenclean.tokens.audit.vocabulary import Vocabulary
from tokenclean.tokens.inference_template import SAMPLE
from tokenclean.tokens.templates import render
from tokenclean.tokens.turn_markers import FAMILIES, Header, choose_family, find_headers, next_end

_SELECTED_SHARE = 0.2  # of rows with gaps: too many for an accident, so tokens were selected
_ENOUGH = 0.5


@dataclass(frozen=True)
class Facts:
    """Facts of the tokenizer, the settings and the first rows.

    ``family``: the template family that most tokenized rows show, or empty. ``expects_markers``: a tokenized row
    without role markers is at fault, since the others have them or a template was asked for. ``is_selected``: labels
    have gaps inside answers in many rows, as token selection leaves them, so that a masked token says nothing.
    ``cut_lengths``: lengths in tokens at which rows may have been cut. ``is_wrapped``: rows end within an answer, so
    that another may begin with the rest of one, as in packs that are cut wherever they are full.
    """

    vocabulary: Vocabulary
    max_length: int
    family: str = ""
    expects_markers: bool = False
    is_selected: bool = False
    cut_lengths: frozenset[int] = frozenset()
    is_wrapped: bool = False

    @classmethod
    def of(
        cls, rows: Sequence[AuditRow], vocabulary: Vocabulary, *, max_length: int, template: str | None = None
    ) -> Facts:
        """From the first rows of the data. ``template``: the one asked for, None for none."""
        tokenized = [row for row in rows if row.kind == "tokens" and len(row)]
        families = Counter(family for row in tokenized if (family := choose_family(row.headers)))
        family = families.most_common(1)[0][0] if families else ""
        expects = families.total() >= _ENOUGH * len(tokenized) if families else False
        if template is not None and tokenized:
            text = render(SAMPLE, vocabulary.tokenizer, template).text
            expects = bool(choose_family(find_headers(text)))
        facts = cls(vocabulary, max_length, family, expects, cut_lengths=frozenset([max_length]))
        completed = [row for row in map(facts.complete, tokenized) if row.is_response.any()]
        gaps = sum(has_gaps(row, facts) for row in completed)
        cuts = {max_length, *_shared_cut(completed, facts)}
        return replace(
            facts,
            is_selected=gaps > _SELECTED_SHARE * len(completed),
            cut_lengths=frozenset(cuts),
            is_wrapped=any(ends_open(row, facts) for row in completed),
        )

    def complete(self, row: AuditRow) -> AuditRow:
        """A tokenized row with the answers that its role markers show; any other row unchanged."""
        if row.kind != "tokens" or row.answers is not None:
            return row
        family = choose_family(row.headers, self.family)
        if not family:
            return row
        headers = tuple(header for header in row.headers if header.family == family)
        return replace(row, answers=self._answers(row, headers))

    def end_spans(self, row: AuditRow) -> list[tuple[int, int]]:
        """Characters [start, end) of every end token of a tokenized row, in order."""
        vocabulary = self.vocabulary
        spans = [tuple(span) for span in row.spans[np.isin(row.input_ids, list(vocabulary.ends))].tolist()]
        family = FAMILIES.get(choose_family(row.headers, self.family))
        for text in family.ends if family else ():
            if text not in vocabulary.added:  # then the tokenizer spells it out
                spans += [match.span() for match in re.finditer(re.escape(text), row.text)]
        return sorted(spans)

    def _answers(self, row: AuditRow, headers: Sequence[Header]) -> tuple[Answer, ...]:
        ends = self.end_spans(row)
        answers = self._rest_of_answer(row, headers, ends)
        for number, header in enumerate(headers):
            if header.role != "assistant":
                continue
            following = headers[number + 1] if number + 1 < len(headers) else None
            limit = following.start if following else len(row.text)
            if found := next_end(ends, header.end, limit):
                answers.append(Answer(header.start, header.end, self._through_ends(row, ends, found[1]), found[0]))
            elif following and self._is_trained_token(row, following):
                # GLM ends an answer by the tag of the turn that follows.
                answers.append(Answer(header.start, header.end, limit + len(following.opener), limit))
            else:
                answers.append(Answer(header.start, header.end, limit, limit))
        return tuple(answers)

    def _rest_of_answer(
        self, row: AuditRow, headers: Sequence[Header], ends: Sequence[tuple[int, int]]
    ) -> list[Answer]:
        """The rest of an answer with which a wrapped pack begins: trained from its first token through an end token."""
        limit = headers[0].start if headers else len(row.text)
        end = next_end(ends, 0, limit)
        if not self.is_wrapped or end is None or FAMILIES[choose_family(headers, self.family)].is_prose:
            return []
        rest = row.tokens_in(0, end[1])
        rest[:1] = False  # the first token follows nothing and is never a target
        return [Answer(0, 0, self._through_ends(row, ends, end[1]), end[0])] if row.is_response[rest].all() else []

    def _is_trained_token(self, row: AuditRow, header: Header) -> bool:
        """Whether the marker's opener is a token of its own, and a target."""
        places = row.tokens_in(header.start, header.start + len(header.opener))
        return header.opener in self.vocabulary.added and bool(row.is_response[places].any())

    def _through_ends(self, row: AuditRow, ends: Sequence[tuple[int, int]], end: int) -> int:
        """The end of an answer, moved behind further end tokens: an EOS may follow the end of the turn."""
        for first, last in ends:
            if first >= end and not row.text[end:first].strip():
                end = last
        return end


def has_gaps(row: AuditRow, facts: Facts) -> bool:
    """Whether there are masked tokens between the targets of one answer.

    If nothing shows the answers, each of them would end with an end token, except the last: more runs of targets are
    gaps.
    """
    if row.answers is not None:
        return row.has_gaps
    ends = int(np.isin(row.input_ids, list(facts.vocabulary.ends)).sum())
    return len(row.runs()) > ends + 1


def ends_open(row: AuditRow, facts: Facts) -> bool:
    """Whether a tokenized row ends within an answer that is trained.

    Without role markers: its last token is a target and ends nothing. With them the last token need be no target, since
    token selection may have dropped it.
    """
    if not row.is_response.any():
        return False
    if row.answers is None:
        return bool(row.is_response[-1]) and int(row.input_ids[-1]) not in facts.vocabulary.ends
    last = row.answers[-1]  # there is one, or the markers would not have been taken for a template's
    return not last.is_closed and last.end == len(row.text) and len(row.targets_of(last)) > 0


def _shared_cut(rows: Sequence[AuditRow], facts: Facts) -> list[int]:
    """The length at which the rows were cut earlier: the greatest, if several rows end open at it and shorter ones do
    not."""
    if not rows:
        return []
    longest = max(map(len, rows))
    at_limit = sum(ends_open(row, facts) for row in rows if len(row) == longest)
    shorter = [ends_open(row, facts) for row in rows if len(row) < longest]
    return [longest] if at_limit >= 2 and sum(shorter) <= _ENOUGH * len(shorter) else []
