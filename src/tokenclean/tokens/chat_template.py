"""The model's own chat template: the text it writes for a conversation, with every text of it accounted for.

A template is a program whose output says nothing about where a turn begins or ends. So the conversation is rendered
once more with a mark in place of each text (``outline``), and that skeleton filled with the texts must give the real
rendering to the letter (``skeleton``). Nothing is searched for in the real text, which may hold the template's own
tags. Conversations of one outline share their skeleton: most rows of a pool cost one rendering.

The rules (docs/templates.md explains them):

- A text that the template leaves out, or writes twice, refuses the row: of whatever role, tools and arguments too.
- A thought may be left out where a later question or answer follows, as it is at inference. It is reported.
- An answer may lose the blanks around it and nothing else. A turn of another role that is rewritten (escaped,
  shortened) is noted.
- What belongs to an answer beside its texts: see ``answer_edges``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation
from tokenclean.tokens.answer_edges import Edges, unlocated
from tokenclean.tokens.chat_messages import DEFAULT_DATE, Chat, open_chat
from tokenclean.tokens.chat_rules import check_marks, rewritten
from tokenclean.tokens.frames import Frame, frames_of
from tokenclean.tokens.outline import (
    CONTENT,
    KEY,
    REASONING,
    THOUGHT,
    Mark,
    Outline,
    outline_of,
    thought_in,
)
from tokenclean.tokens.rendered_text import ContentSpan, Rendered
from tokenclean.tokens.skeleton import Failure, Skeleton, Span, escaped_forms, fill, stripped_forms

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTE_MOVED = "thoughts in an answer's content were given to the template as reasoning, which it writes its own way"
NOTE_TAGS = "the template rewrites the tags or blanks around a thought in an answer's content"
NOTE_ENDLESS = "the template writes no end token behind an answer"


def render_chat_template(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str = DEFAULT_DATE
) -> Rendered:
    """Render with the tokenizer's chat template, which is given reasoning, tool calls and the tools on offer too.

    A thought at the start of an answer's content is given as it stands, and as reasoning where its answer cannot be
    located so. Raises TemplateError where the template refuses the conversation, or breaks a rule of this module.
    """
    try:
        return _render(conversation, tokenizer, date)
    except TemplateError as error:
        moved, offsets = _move_thoughts(conversation)
        if not offsets:
            raise
        try:
            rendered = _render(moved, tokenizer, date)
        except TemplateError:
            raise error from None
    contents = tuple(replace(c, skipped=c.skipped + offsets.get(c.turn, 0)) for c in rendered.contents)
    is_same = all(conversation.turns[index].content.strip() in rendered.text for index in offsets)
    notes = rendered.notes if is_same else (*rendered.notes, NOTE_MOVED)
    return replace(rendered, contents=contents, notes=notes)


def _move_thoughts(conversation: Conversation) -> tuple[Conversation, dict[int, int]]:
    """Thoughts inside contents as reasoning; of each such turn where in its content the answer begins."""
    turns, offsets = list(conversation.turns), {}
    for index, turn in enumerate(turns):
        if turn.role == "assistant" and not turn.reasoning.strip() and (found := thought_in(turn.content)):
            first, last, answer = found
            turns[index] = replace(turn, reasoning=turn.content[first:last], content=turn.content[answer:])
            offsets[index] = answer
    return replace(conversation, turns=tuple(turns)), offsets


def _render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str) -> Rendered:
    chat, text = open_chat(conversation, tokenizer, date)
    if chat.has_calls and not chat.has_text_arguments and _writes_python(chat):
        as_text = chat.with_text_arguments()
        try:
            return _render_marked(as_text, as_text.apply(as_text.messages))
        except TemplateError:
            pass
    return _render_marked(chat, text)


def _writes_python(chat: Chat) -> bool:
    """Whether the template writes arguments as Python does (``{'city': 'Rome'}``), so was made for JSON text."""
    try:
        skeleton = frames_of(chat).find(outline_of(chat, marks_blanks=True)).skeleton
    except TemplateError:
        return False
    return any(
        mark.kind == KEY and glue.endswith("{'") for mark, glue in zip(skeleton.marks, skeleton.glue[:-1], strict=True)
    )


def _render_marked(chat: Chat, text: str) -> Rendered:
    """With marks for blank contents too, which alone shows where a blank answer is; without, where that changes what
    the template writes."""
    try:
        return _Located.of(chat, text, marks_blanks=True).rendered()
    except TemplateError:
        if all(turn.content.strip() for turn in chat.turns):
            raise
    return _Located.of(chat, text, marks_blanks=False).rendered()


@dataclass(frozen=True)
class _Located:
    """A rendered conversation with the span of each of its texts that the template wrote."""

    outline: Outline
    frame: Frame
    skeleton: Skeleton
    text: str
    spans: dict[Mark, Span]

    @classmethod
    def of(cls, chat: Chat, text: str, *, marks_blanks: bool) -> _Located:
        """Turns that are no answers become part of the glue where the template rewrites them, or looks into them."""
        literal: frozenset[int] = frozenset()
        while True:
            outline = outline_of(chat, marks_blanks=marks_blanks, literal=literal)
            frame = frames_of(chat).find(outline)
            if not frame.is_sound and (lost := check_marks(outline, frame)):
                literal |= lost
                continue
            skeleton = frame.skeleton
            if chat.has_calls:
                rendering = chat.apply(outline.messages(marks_arguments=False))
                skeleton = Skeleton.read(rendering, outline.stem)
                if list(skeleton.marks) != frame.skeleton.texts:
                    raise rewritten(outline, None)
            spans = fill(skeleton, [stripped_forms(outline.texts[mark]) for mark in skeleton.marks], text)
            if isinstance(spans, Failure):
                spans = fill(skeleton, [_forms(outline, mark) for mark in skeleton.marks], text)
            if not isinstance(spans, Failure):
                return cls(outline, frame, skeleton, text, dict(zip(skeleton.marks, spans, strict=True)))
            wider = _next_literal(chat, literal, spans.mark)
            if wider == literal:
                raise rewritten(outline, spans.mark)
            literal = wider

    def rendered(self) -> Rendered:
        edges = self.frame.edges(self.outline)
        targets, contents, is_endless = [], [], False
        for index, turn in enumerate(self.outline.chat.turns):
            if turn.role != "assistant":
                continue
            if index not in edges:
                if turn.is_trained:
                    raise TemplateError(
                        f"the chat template writes nothing for the blank answer in turns[{index}]; leave the turn out, "
                        "or use template: tulu"
                    )
                continue
            target = self._target(index, edges)
            contents.append(self._content(index, target))
            if turn.is_trained:
                targets.append((target.start, target.end))
                is_endless |= not edges[index].end_token
        notes = self._notes(is_endless)
        return Rendered(self.text, tuple(targets), tuple(contents), False, notes, self._dropped_thoughts())

    def _target(self, index: int, edges: dict[int, Edges]) -> Span:
        """An answer with what the template writes around it."""
        start, end = self._start(edges[index], edges), self._end(edges[index], edges)
        calls = self.outline.chat.turns[index].tool_calls
        if not 0 <= start <= end or not all(call.name in self.text[start:end] for call in calls):
            raise unlocated(index)
        return Span(start, end)

    def _start(self, edge: Edges, edges: dict[int, Edges]) -> int:
        """Arguments are in the glue here and have marks in the frame, so glue beside them is compared from its other
        side."""
        marks, before = self.frame.skeleton.marks, self.frame.skeleton.glue[edge.first]
        mark, previous = marks[edge.first], marks[edge.first - 1] if edge.first else None
        if mark in self.spans:
            start = self.spans[mark].start - (len(before) - edge.start)
            is_sure = self.text.startswith(before[edge.start :], start)
        elif previous is None or previous in self.spans:
            begin = self.spans[previous].end if previous else 0
            start = begin + edge.start
            is_sure = self.text.startswith(before[: edge.start], begin)
        else:
            return self._between(edge.first - 1, edges) + edge.start - edges[previous.turn].closing
        if not is_sure:
            raise unlocated(mark.turn)
        return start

    def _end(self, edge: Edges, edges: dict[int, Edges]) -> int:
        marks, after = self.frame.skeleton.marks, self.frame.skeleton.glue[edge.last + 1]
        mark, following = marks[edge.last], marks[edge.last + 1] if edge.last + 1 < len(marks) else None
        if mark in self.spans:
            end = self.spans[mark].end + edge.closing
            is_sure = self.text.startswith(after[: edge.closing], self.spans[mark].end)
        elif following is None or following in self.spans:
            finish = self.spans[following].start if following else len(self.text)
            end = finish - len(after) + edge.closing
            is_sure = self.text.endswith(after[edge.closing - edge.end_token :], 0, finish)
        else:
            return self._between(edge.last, edges)
        if not is_sure:
            raise unlocated(mark.turn)
        return end

    def _between(self, last: int, edges: dict[int, Edges]) -> int:
        """End of an answer whose last argument is followed by another answer's first, with no text in between.

        What the template writes between two such answers is found by its letters, if arguments do not hold them too.
        """
        marks, glue = self.frame.skeleton.marks, self.frame.skeleton.glue
        first, final = last, last + 1
        while first and marks[first - 1] not in self.spans:
            first -= 1
        while final + 1 < len(marks) and marks[final + 1] not in self.spans:
            final += 1
        begin = self.spans[marks[first - 1]].end if first else 0
        finish = self.spans[marks[final + 1]].start if final + 1 < len(marks) else len(self.text)
        begin += edges[marks[first].turn].start
        finish -= len(glue[final + 1]) - edges[marks[final].turn].closing
        borders = {
            number: glue[number + 1][edges[one.turn].closing - edges[one.turn].end_token : edges[other.turn].start]
            for number, (one, other) in enumerate(pairwise(marks[first : final + 1]), start=first)
            if one.turn != other.turn
        }
        border = borders[last]
        alike = [number for number, other in borders.items() if other == border]
        places = [match.start() for match in re.finditer(re.escape(border), self.text[begin:finish])] if border else []
        if len(places) != len(alike):
            raise unlocated(marks[last].turn)
        return begin + places[alike.index(last)] + edges[marks[last].turn].end_token

    def _content(self, index: int, target: Span) -> ContentSpan:
        """Of a content in which a thought was written back to the letter, all of it; else the answer alone."""
        content = self.outline.chat.turns[index].content
        mark = next((m for kind in (CONTENT, THOUGHT) if (m := Mark(index, kind)) in self.spans), None)
        if mark is None:
            return ContentSpan(index, target.start, target.start, len(content))
        start, end = self.spans[mark]
        text, offset = self.outline.texts[mark], self.outline.offset(mark)
        if text.strip():
            written = self.text[start:end]
            skipped = offset + (len(text) - len(text.lstrip())) - (len(written) - len(written.lstrip()))
        else:
            skipped = offset + len(text) - (end - start)
        blank = len(content) - len(content.lstrip())
        front = content[blank:offset]
        if front and start - len(front) >= target.start and self.text.endswith(front, 0, start):
            return ContentSpan(index, start - len(front), end, blank)
        return ContentSpan(index, start, end, skipped)

    def _notes(self, is_endless: bool) -> tuple[str, ...]:
        notes = []
        for index, (turn, outline) in enumerate(zip(self.outline.chat.turns, self.outline.turns, strict=True)):
            if turn.role == "assistant":
                if Mark(index, THOUGHT) in self.spans and turn.content.strip() not in self.text:
                    notes.append(NOTE_TAGS)
                continue
            written = self.text
            if (span := self.spans.get(Mark(index, CONTENT))) is not None and outline.parts[0].kind:
                written = self.text[span.start : span.end]
            if turn.content.strip() not in written:
                notes.append(f"the template rewrites a {turn.role} turn")
        if is_endless:
            notes.append(NOTE_ENDLESS)
        return tuple(dict.fromkeys(notes))

    def _dropped_thoughts(self) -> tuple[str, ...]:
        """In the order of the turns."""
        return tuple(
            text
            for mark, text in self.outline.texts.items()
            if mark.kind in (REASONING, THOUGHT) and mark not in self.spans
        )


def _forms(outline: Outline, mark: Mark) -> tuple[str, ...]:
    """What a template may make of a text; the escapes of JSON are no answer's."""
    text = outline.texts[mark]
    forms = stripped_forms(text)
    return forms if outline.chat.turns[mark.turn].role == "assistant" else forms + escaped_forms(text)


def _next_literal(chat: Chat, literal: frozenset[int], mark: Mark | None) -> frozenset[int]:
    """Turns to leave as they stand next: system turns, which switch thinking on and off and are the same in many rows,
    then the one that does not fit, then all but the answers."""
    context = [index for index, turn in enumerate(chat.turns) if turn.role != "assistant"]
    for candidates in (
        [index for index in context if chat.turns[index].role == "system"],
        [index for index in context if mark is not None and index == mark.turn],
        context,
    ):
        if not literal.issuperset(candidates):
            return literal.union(candidates)
    return literal
