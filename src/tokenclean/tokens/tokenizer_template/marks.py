"""A conversation with a mark in place of each text, so that a template can be asked where it writes which text; and
these texts found in its real rendering.

What a template looks at besides the texts stays: roles, names, calls, and the tags around thoughts. Conversations that
differ in their texts alone have one shape, and share what is found out about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from tokenclean.pool.conversation import ToolCall, Turn
from tokenclean.tokens.rendered_text import Span, leading_blanks
from tokenclean.tokens.tokenizer_template.chat import Chat

CONTENT, REASONING, THOUGHT, KEY, VALUE = "crtkv"
"""Kinds of marks: a turn's content, its reasoning field, a thought inside its content, a call's argument."""

# How model families open and close a thought at the start of an answer's content.
THOUGHT_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
)
# Qwen 3 looks for the last question, and skips a user turn in these tags: it is a tool's result.
_RESULT_TAGS = ("<tool_response>", "</tool_response>")


class Mark(NamedTuple):
    """Stands for one text: of which turn, of which kind, and of which call."""

    turn: int
    kind: str
    call: int = 0

    def spelled(self, stem: str) -> str:
        """Letters, digits and an underscore, which JSON, XML and Python write without escapes."""
        return f"{stem}{self.turn}{self.kind}{self.call}_"


class Part(NamedTuple):
    """A piece of a content: the kind of mark that stands for it, or (kind "") a literal."""

    kind: str
    text: str


@dataclass(frozen=True)
class TurnParts:
    """One turn's content in parts, and whether its reasoning field gets a mark."""

    parts: tuple[Part, ...]
    has_reasoning: bool
    is_plain: bool
    """An answer that is content alone, without thoughts and calls."""

    @property
    def shape(self) -> Hashable:
        return tuple(part if not part.kind else part.kind for part in self.parts), self.has_reasoning


@dataclass(frozen=True)
class MarkedChat:
    """A conversation's turns in parts. ``stem``: what its marks begin with, a word that is nowhere in its texts."""

    chat: Chat
    turns: tuple[TurnParts, ...]
    stem: str

    @cached_property
    def texts(self) -> dict[Mark, str]:
        """What each mark of a content or a thought stands for, in the order of the turns."""
        texts: dict[Mark, str] = {}
        for index, turn in enumerate(self.turns):
            if turn.has_reasoning:
                texts[Mark(index, REASONING)] = self.chat.turns[index].reasoning
            texts |= {Mark(index, part.kind): part.text for part in turn.parts if part.kind}
        return texts

    @property
    def shape(self) -> Hashable:
        """Equal for two conversations that differ only in the texts that marks stand for, and in arguments."""
        chat = self.chat
        shapes = tuple(
            (turn.role, parts.shape, turn.name, turn.call_id, tuple((call.name, call.id) for call in turn.tool_calls))
            for turn, parts in zip(chat.turns, self.turns, strict=True)
        )
        return self.stem, chat.has_text_arguments, chat.conversation.tools, shapes

    def shape_before(self, index: int) -> Hashable:
        """What a template's generation prompt for this turn may depend on: the turn in front, the tools, and the
        literals of all turns in front."""
        literals = tuple(part.text for turn in self.turns[:index] for part in turn.parts if not part.kind and part.text)
        before = self.chat.turns[index - 1] if index else None
        said = (before.role, bool(before.tool_calls), index > 1) if before else ()
        return said, self.chat.has_text_arguments, self.chat.conversation.tools, literals

    def offset(self, mark: Mark) -> int:
        """Where in the turn's content the mark's text begins."""
        parts = self.turns[mark.turn].parts
        place = [part.kind for part in parts].index(mark.kind)
        return sum(len(part.text) for part in parts[:place])

    def spelled(self, *, marks_arguments: bool) -> Chat:
        """The chat with its marks as texts. ``marks_arguments``: a key and a value for each call's arguments."""
        turns = []
        for index, (turn, marked) in enumerate(zip(self.chat.turns, self.turns, strict=True)):
            calls = [self._marked_call(index, n, call) for n, call in enumerate(turn.tool_calls)]
            turns.append(
                replace(
                    turn,
                    content="".join(self._spell(index, kind) if kind else text for kind, text in marked.parts),
                    reasoning=self._spell(index, REASONING) if marked.has_reasoning else turn.reasoning,
                    tool_calls=tuple(calls) if marks_arguments else turn.tool_calls,
                )
            )
        return replace(self.chat, conversation=replace(self.chat.conversation, turns=tuple(turns)))

    def find_texts(self, skeleton: Skeleton, text: str) -> dict[Mark, Span] | Failure:
        """The span of each text in the template's real text, whose skeleton this is."""
        for has_escapes in (False, True):
            spans = _fill(skeleton, [self._forms(mark, has_escapes=has_escapes) for mark in skeleton.marks], text)
            if not isinstance(spans, Failure):
                return dict(zip(skeleton.marks, spans, strict=True))
        return spans

    def _forms(self, mark: Mark, *, has_escapes: bool) -> tuple[str, ...]:
        said, is_answer = self.texts[mark], self.chat.turns[mark.turn].role == "assistant"
        return _stripped_forms(said) + (_escaped_forms(said) if has_escapes and not is_answer else ())

    def _marked_call(self, turn: int, number: int, call: ToolCall) -> ToolCall:
        key, value = (self._spell(turn, kind, number) for kind in (KEY, VALUE))
        return replace(call, arguments=f'{{"{key}": "{value}"}}')

    def _spell(self, turn: int, kind: str, call: int = 0) -> str:
        return Mark(turn, kind, call).spelled(self.stem)


def mark_texts(chat: Chat, *, marks_blanks: bool, literal: frozenset[int] = frozenset()) -> MarkedChat:
    """``marks_blanks``: blank contents get marks; a template that asks whether there is a content then sees one.
    ``literal``: turns whose content stays."""
    turns = tuple([_divide(turn, index in literal, marks_blanks) for index, turn in enumerate(chat.turns)])
    return MarkedChat(chat, turns, _unused_stem(chat))


def thought_in(content: str) -> tuple[int, int, int] | None:
    """A thought in tags at the start of a content: where it begins, where it ends, and where the answer begins.

    Blanks around the thought and in front of the answer belong to neither. None if there is none, or if it is not
    clear which tag closes it.
    """
    begin = leading_blanks(content)
    if content[begin : begin + 1] not in ("<", "["):
        return None
    for opening, closing in THOUGHT_TAGS:
        if content.startswith(opening, begin):
            inside = begin + len(opening)
            end = content.find(closing, inside)
            if end < 0 or content.count(closing) > 1:
                return None
            thought, behind = content[inside:end], end + len(closing)
            first = inside + leading_blanks(thought)
            return first, first + len(thought.strip()), behind + leading_blanks(content[behind:])
    return None


def _divide(turn: Turn, is_literal: bool, marks_blanks: bool) -> TurnParts:
    content, has_reasoning = turn.content, turn.role == "assistant" and bool(turn.reasoning.strip())
    is_plain = turn.role == "assistant" and not has_reasoning and not turn.tool_calls
    parts = (Part(CONTENT, content),)
    opening, closing = _RESULT_TAGS
    if is_literal:
        parts = (Part("", content),)
    elif not content.strip():
        is_marked = marks_blanks and (is_plain or turn.role in ("user", "tool"))
        parts = (Part(CONTENT if is_marked else "", content),)
    elif turn.role == "assistant" and (found := thought_in(content)):
        first, last, answer = found
        is_plain = False
        parts = (
            Part("", content[:first]),
            Part(THOUGHT if first < last else "", content[first:last]),
            Part("", content[last:answer]),
            Part(CONTENT if answer < len(content) else "", content[answer:]),
        )
    elif turn.role == "user" and content.startswith(opening) and content.endswith(closing):
        inside = content[len(opening) : -len(closing)]
        parts = (Part("", opening), Part(CONTENT, inside), Part("", closing))
    return TurnParts(parts, has_reasoning, is_plain)


def _unused_stem(chat: Chat) -> str:
    """A word that no text of the conversation holds."""
    texts = [chat.conversation.tools]
    for turn in chat.turns:
        texts += [turn.content, turn.reasoning, turn.name, turn.call_id]
        texts += [text for call in turn.tool_calls for text in (call.name, call.arguments, call.id)]
    stem = "slotmark"
    while any(stem in text for text in texts):
        stem += stem[-1]
    return stem


@dataclass(frozen=True)
class Skeleton:
    """A rendering with marks: ``glue[n]``, the template's own text, comes before ``marks[n]``; the last glue comes
    after them all."""

    glue: tuple[str, ...]
    marks: tuple[Mark, ...]

    @classmethod
    def read(cls, rendering: str, stem: str) -> Skeleton:
        pieces = re.split(rf"{stem}(\d+)([a-z])(\d+)_", rendering)
        marks = zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
        return cls(tuple(pieces[::4]), tuple(Mark(int(turn), kind, int(call)) for turn, kind, call in marks))


class Failure(NamedTuple):
    """The first mark whose text, with the glue after it, is not what the template wrote; None for no mark."""

    mark: Mark | None


def _fill(skeleton: Skeleton, variants: Sequence[Sequence[str]], text: str) -> list[Span] | Failure:
    """The span of each mark's text, such that glue and texts together are exactly the whole text.

    ``variants``: for each mark the forms in which the template may write its text, the likeliest first. All of them are
    followed in parallel, since only the glue that comes next may show which one it is.
    """
    if not text.startswith(skeleton.glue[0]):
        return Failure(skeleton.marks[0] if skeleton.marks else None)
    reached = {len(skeleton.glue[0]): (0, 0)}  # a position behind a glue -> the span of the text in front of that glue
    trail = []
    for mark, forms, glue in zip(skeleton.marks, variants, skeleton.glue[1:], strict=True):
        following: dict[int, tuple[int, int]] = {}
        for position in reached:
            for form in forms:
                end = position + len(form)
                if text.startswith(form, position) and text.startswith(glue, end):
                    following.setdefault(end + len(glue), (position, end))
        if not following:
            return Failure(mark)
        trail.append(reached := following)
    if len(text) not in reached:
        return Failure(skeleton.marks[-1] if skeleton.marks else None)
    spans, position = [], len(text)
    for reached in reversed(trail):
        spans.append(Span(*reached[position]))
        position = spans[-1].start
    return spans[::-1]


def _stripped_forms(text: str) -> tuple[str, ...]:
    """The text with and without the blanks around it, as templates strip them; longest first."""
    if text and not text[0].isspace() and not text[-1].isspace():
        return (text,)
    strips = (str.lstrip, str.rstrip, str.strip)
    forms = (text, *(strip(text, blanks) for blanks in (None, "\n", " \n") for strip in strips))
    return tuple(sorted(dict.fromkeys(forms), key=len, reverse=True))


def _escaped_forms(text: str) -> tuple[str, ...]:
    """The text as JSON writes it inside its quotes, stripped or not; nothing if that is the text itself."""
    plain = _stripped_forms(text)
    forms = [json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in plain for is_ascii in (False, True)]
    return tuple(form for form in dict.fromkeys(forms) if form not in plain)
