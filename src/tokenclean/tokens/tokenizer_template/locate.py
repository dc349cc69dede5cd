"""Where the texts and the answers of a conversation are in the text that its chat template wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tokenclean.errors import TemplateError
from tokenclean.tokens.rendered_text import ContentSpan, Rendered, Span, leading_blanks
from tokenclean.tokens.tokenizer_template.chat import Chat
from tokenclean.tokens.tokenizer_template.checks import check_frame, rewritten_answer
from tokenclean.tokens.tokenizer_template.frames import Frame, find_frame, unlocated
from tokenclean.tokens.tokenizer_template.marks import CONTENT, THOUGHT, Failure, Mark, MarkedChat, Skeleton, mark_texts

NOTE_TAGS = "the template rewrites the tags or blanks around a thought in an answer's content"
NOTE_ENDLESS = "the template writes no end token behind an answer"


def locate(chat: Chat, text: str, *, marks_blanks: bool) -> Rendered:
    """The chat's text with its targets and contents. ``marks_blanks``: as for ``mark_texts``.

    Turns that are not answers stay literal, part of the template's own text, if the template rewrites them or looks
    into them. Raises TemplateError if the template breaks a rule, or if an answer cannot be found.
    """
    literal: frozenset[int] = frozenset()
    while True:
        marked = mark_texts(chat, marks_blanks=marks_blanks, literal=literal)
        frame = find_frame(marked)
        if not frame.is_sound and (rewritten := check_frame(marked, frame)):
            literal |= rewritten
            continue
        spans = _find_texts(marked, frame, text)
        if not isinstance(spans, Failure):
            return _Located(marked, frame, text, spans).rendered()
        wider = _next_literal(chat, literal, spans.mark)
        if wider == literal:
            raise rewritten_answer(chat, spans.mark)
        literal = wider


def _find_texts(marked: MarkedChat, frame: Frame, text: str) -> dict[Mark, Span] | Failure:
    """The span of each text that the template wrote."""
    chat, skeleton = marked.chat, frame.skeleton
    if chat.has_calls:  # the frame has marks for arguments, which a template writes in its own way
        skeleton = Skeleton.read(marked.spelled(marks_arguments=False).apply(), marked.stem)
        if skeleton.marks != tuple(mark for mark in frame.skeleton.marks if mark in marked.texts):
            raise rewritten_answer(chat, None)
    return marked.find_texts(skeleton, text)


def _next_literal(chat: Chat, literal: frozenset[int], mark: Mark | None) -> frozenset[int]:
    """Turns to leave literal next: system turns, which switch thinking on and off and are the same in many rows, then
    the one that does not fit, then all but the answers."""
    context = [index for index, turn in enumerate(chat.turns) if turn.role != "assistant"]
    for candidates in (
        [index for index in context if chat.turns[index].role == "system"],
        [index for index in context if mark is not None and index == mark.turn],
        context,
    ):
        if not literal.issuperset(candidates):
            return literal.union(candidates)
    return literal


@dataclass(frozen=True)
class _Located:
    """A rendered conversation with the span of each of its texts that the template wrote."""

    marked: MarkedChat
    frame: Frame
    text: str
    spans: dict[Mark, Span]

    def rendered(self) -> Rendered:
        targets, contents, is_endless = [], [], False
        for index, turn in enumerate(self.marked.chat.turns):
            if turn.role != "assistant":
                continue
            if index not in self.frame.edges:
                if turn.is_trained:
                    raise TemplateError(
                        f"the chat template writes nothing for the blank answer in turns[{index}]; leave the turn out, "
                        "or use template: tulu"
                    )
                continue
            target = self._target(index)
            contents.append(self._content(index, target))
            if turn.is_trained:
                targets.append((target.start, target.end))
                is_endless |= not self.frame.edges[index].end_token
        notes = [*self._rewritings(), *([NOTE_ENDLESS] if is_endless else [])]
        texts = self.marked.texts.items()
        dropped = [said for mark, said in texts if mark.kind != CONTENT and mark not in self.spans]
        return Rendered(self.text, tuple(targets), tuple(contents), False, tuple(dict.fromkeys(notes)), tuple(dropped))

    def _target(self, index: int) -> Span:
        """An answer with what the template writes around it."""
        edge = self.frame.edges[index]
        start = self._place(edge.first, edge.start, index, is_after_preferred=True)
        end = self._place(edge.last + 1, edge.closing, index, end_token=edge.end_token)
        calls = self.marked.chat.turns[index].tool_calls
        if not 0 <= start <= end or not all(call.name in self.text[start:end] for call in calls):
            raise unlocated(index)
        return Span(start, end)

    def _place(
        self, number: int, offset: int, answer: int, *, end_token: int = 0, is_after_preferred: bool = False
    ) -> int:
        """Where in the text the character ``offset`` of the frame's glue ``number`` is.

        The text has arguments where the frame has marks, so a glue is found from a text beside it. If there is one on
        either side, the answer's own side is used.
        """
        glue, before, after = self.frame.skeleton.glue[number], self._ends_before[number], self._starts_after[number]
        if after is not None and (is_after_preferred or before is None):
            place = after - len(glue) + offset
            is_sure = self.text.endswith(glue[offset - end_token :], 0, after)
        elif before is not None:
            place = before + offset
            is_sure = self.text.startswith(glue[:offset], before)
        else:
            earlier = self.frame.skeleton.marks[number - 1].turn
            return self._border(number) + offset - self.frame.edges[earlier].closing
        if not is_sure:
            raise unlocated(answer)
        return place

    @cached_property
    def _ends_before(self) -> list[int | None]:
        """For each glue of the frame, where the text before it ends; None if an argument comes before it."""
        spans = map(self.spans.get, self.frame.skeleton.marks)
        return [0, *(span.end if span else None for span in spans)]

    @cached_property
    def _starts_after(self) -> list[int | None]:
        """For each glue of the frame, where the text after it starts; None if an argument comes after it."""
        spans = map(self.spans.get, self.frame.skeleton.marks)
        return [*(span.start if span else None for span in spans), len(self.text)]

    def _border(self, number: int) -> int:
        """The end of an answer whose last argument comes before this glue, and the next answer's first comes after it.

        What the template writes between two such answers is searched for; no argument may contain it too.
        """
        marks, glue, edges = self.frame.skeleton.marks, self.frame.skeleton.glue, self.frame.edges
        first, final = number, number
        while (begin := self._ends_before[first]) is None:
            first -= 1
        while (finish := self._starts_after[final]) is None:
            final += 1
        begin += edges[marks[first].turn].start
        finish -= len(glue[final]) - edges[marks[final - 1].turn].closing
        borders = {
            place: glue[place][edges[one.turn].closing - edges[one.turn].end_token : edges[two.turn].start]
            for place, (one, two) in enumerate(pairwise(marks[first:final]), start=first + 1)
            if one.turn != two.turn
        }
        alike = [place for place, border in borders.items() if border == borders[number]]
        found = re.finditer(re.escape(borders[number]), self.text[begin:finish]) if borders[number] else ()
        starts = [match.start() for match in found]
        earlier = marks[number - 1].turn
        if len(starts) != len(alike):
            raise unlocated(earlier)
        return begin + starts[alike.index(number)] + edges[earlier].end_token

    def _content(self, index: int, target: Span) -> ContentSpan:
        """All of a content whose thought was written back word for word; else the answer alone."""
        turn = self.marked.chat.turns[index]
        content, length = turn.content, len(turn.content)
        mark = next((m for kind in (CONTENT, THOUGHT) if (m := Mark(index, kind)) in self.spans), None)
        if mark is None:
            end_token = self._end_token(index, target, target.start)
            return ContentSpan(index, target.start, target.start, length, length, end_token)
        start, end = self.spans[mark]
        end_token = self._end_token(index, target, end)
        said, written = self.marked.texts[mark], self.text[start:end]
        offset, blank = self.marked.offset(mark), leading_blanks(content)
        front = content[blank:offset]
        if front and start - len(front) >= target.start and self.text.endswith(front, 0, start):
            return ContentSpan(index, start - len(front), end, blank, length, end_token)
        stripped = leading_blanks(said) - leading_blanks(written) if said.strip() else len(said) - len(written)
        return ContentSpan(index, start, end, offset + stripped, length, end_token)

    def _end_token(self, index: int, target: Span, content_end: int) -> tuple[int, int]:
        """What ends an answer: all that the template writes behind the content; behind calls the end token alone."""
        turn = self.marked.chat.turns[index]
        return (target.end - self.frame.edges[index].end_token if turn.tool_calls else content_end, target.end)

    def _rewritings(self) -> list[str]:
        """Notes on what the template rewrites."""
        notes = []
        for index, (turn, marked) in enumerate(zip(self.marked.chat.turns, self.marked.turns, strict=True)):
            if turn.role == "assistant":
                if Mark(index, THOUGHT) in self.spans and turn.content.strip() not in self.text:
                    notes.append(NOTE_TAGS)
                continue
            span = self.spans.get(Mark(index, CONTENT)) if marked.parts[0].kind else None
            if turn.content.strip() not in (self.text[span.start : span.end] if span else self.text):
                notes.append(f"the template rewrites a {turn.role} turn")
        return notes
