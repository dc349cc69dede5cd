"""A conversation without its texts: what decides how a template writes it, and the texts that go into it.

Each text becomes a mark, so a template can be asked where it writes which text. What a template looks at besides
stays as it is: roles, names, calls, and the tags around thoughts. Conversations of one outline share their skeleton.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

from tokenclean.pool.conversation import Turn
from tokenclean.tokens.chat_messages import Chat, Message

CONTENT, REASONING, THOUGHT, KEY, VALUE = "crtkv"
"""Kinds of marks: a turn's content, its reasoning field, a thought inside its content, a call's argument."""

# How model families open and close a thought that stands in front of the answer, in its content.
THOUGHT_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
)
# Qwen 3 passes over a question that is a tool's result in these tags when it looks for the last question.
_RESULT_TAGS = ("<tool_response>", "</tool_response>")


class Mark(NamedTuple):
    """Stands for one text: of which turn, of which kind, and of which call."""

    turn: int
    kind: str
    call: int = 0

    def spelled(self, stem: str) -> str:
        """Letters, digits and an underscore, which JSON, XML and Python write as they stand."""
        return f"{stem}{self.turn}{self.kind}{self.call}_"


class Part(NamedTuple):
    """A piece of a content: the kind of mark that stands for it, or (kind "") a literal that stays."""

    kind: str
    text: str


@dataclass(frozen=True)
class TurnOutline:
    """One turn's content in parts, and whether its reasoning field gets a mark."""

    parts: tuple[Part, ...]
    has_reasoning: bool
    is_plain: bool
    """An answer that is content alone, without thoughts and calls."""

    @property
    def shape(self) -> Hashable:
        return tuple(part if not part.kind else part.kind for part in self.parts), self.has_reasoning


@dataclass(frozen=True)
class Outline:
    """A conversation's turns in parts.

    ``stem``: what its marks begin with, which stands nowhere in its texts. ``texts``: what each mark of a content or a
    thought stands for, in the order of the turns.
    """

    chat: Chat
    turns: tuple[TurnOutline, ...]
    stem: str
    texts: dict[Mark, str]

    @property
    def shape(self) -> Hashable:
        """Two conversations of one shape are the same but for the texts that marks stand for, and arguments."""
        chat = self.chat
        shapes = tuple(
            (turn.role, outline.shape, turn.name, turn.call_id, tuple((c.name, c.id) for c in turn.tool_calls))
            if turn.name or turn.call_id or turn.tool_calls
            else (turn.role, outline.shape)
            for turn, outline in zip(chat.turns, self.turns, strict=True)
        )
        return self.stem, chat.has_text_arguments, chat.conversation.tools, shapes

    def shape_before(self, index: int) -> Hashable:
        """What a template's generation prompt for this turn may depend on: the turn in front, the tools, and what the
        turns in front say where they are literal."""
        literals = tuple(
            part.text for outline in self.turns[:index] for part in outline.parts if not part.kind and part.text
        )
        before = self.chat.turns[index - 1] if index else None
        said = (before.role, bool(before.tool_calls), index > 1) if before else ()
        return said, self.chat.has_text_arguments, self.chat.conversation.tools, literals

    def offset(self, mark: Mark) -> int:
        """Where in the turn's content the mark's text begins."""
        offset = 0
        for part in self.turns[mark.turn].parts:
            if part.kind == mark.kind:
                break
            offset += len(part.text)
        return offset

    def messages(self, *, marks_arguments: bool) -> list[Message]:
        """The messages with their marks. ``marks_arguments``: a key and a value in place of each call's arguments."""
        messages = []
        for index, (message, outline) in enumerate(zip(self.chat.messages, self.turns, strict=True)):
            marked = dict(message)
            marked["content"] = "".join(
                Mark(index, part.kind).spelled(self.stem) if part.kind else part.text for part in outline.parts
            )
            if outline.has_reasoning:
                marked["reasoning_content"] = Mark(index, REASONING).spelled(self.stem)
            if marks_arguments and "tool_calls" in message:
                marked["tool_calls"] = [self._mark_call(index, n, call) for n, call in enumerate(message["tool_calls"])]
            messages.append(marked)
        return messages

    def _mark_call(self, turn: int, number: int, call: Message) -> Message:
        key, value = (Mark(turn, kind, number).spelled(self.stem) for kind in (KEY, VALUE))
        arguments = f'{{"{key}": "{value}"}}' if self.chat.has_text_arguments else {key: value}
        return call | {"function": call["function"] | {"arguments": arguments}}


def outline_of(chat: Chat, *, marks_blanks: bool, literal: frozenset[int] = frozenset()) -> Outline:
    """``marks_blanks``: blank contents get marks, which a template that asks for their presence takes for texts.
    ``literal``: turns whose content stays as it is."""
    turns = tuple([_divide(turn, index in literal, marks_blanks) for index, turn in enumerate(chat.turns)])
    texts: dict[Mark, str] = {}
    for index, outline in enumerate(turns):
        if outline.has_reasoning:
            texts[Mark(index, REASONING)] = chat.turns[index].reasoning
        for part in outline.parts:
            if part.kind:
                texts[Mark(index, part.kind)] = part.text
    return Outline(chat, turns, _unused_stem(chat), texts)


def thought_in(content: str) -> tuple[int, int, int] | None:
    """A thought in tags at the start of a content: where it begins, where it ends, and where the answer begins.

    Blanks around the thought and in front of the answer belong to neither. None where there is none, or where it is not
    clear which tag closes it.
    """
    begin = len(content) - len(content.lstrip())
    if content[begin : begin + 1] not in ("<", "["):
        return None
    for opening, closing in THOUGHT_TAGS:
        if content.startswith(opening, begin):
            end = content.find(closing, begin + len(opening))
            if end < 0 or content.count(closing) > 1:
                return None
            thought = content[begin + len(opening) : end]
            answer = content[end + len(closing) :]
            first = begin + len(opening) + len(thought) - len(thought.lstrip())
            return first, max(first, first + len(thought.strip())), len(content) - len(answer.lstrip())
    return None


def _divide(turn: Turn, is_literal: bool, marks_blanks: bool) -> TurnOutline:
    content, has_reasoning = turn.content, turn.role == "assistant" and bool(turn.reasoning.strip())
    is_plain = turn.role == "assistant" and not has_reasoning and not turn.tool_calls
    if is_literal:
        return TurnOutline((Part("", content),), has_reasoning, is_plain)
    if not content.strip():
        is_marked = marks_blanks and (is_plain or turn.role in ("user", "tool"))
        return TurnOutline((Part(CONTENT if is_marked else "", content),), has_reasoning, is_plain)
    if turn.role == "assistant" and (found := thought_in(content)):
        first, last, answer = found
        parts = (
            Part("", content[:first]),
            Part(THOUGHT if first < last else "", content[first:last]),
            Part("", content[last:answer]),
            Part(CONTENT if answer < len(content) else "", content[answer:]),
        )
        return TurnOutline(parts, has_reasoning, False)
    opening, closing = _RESULT_TAGS
    if turn.role == "user" and content.startswith(opening) and content.endswith(closing):
        inside = content[len(opening) : -len(closing)]
        return TurnOutline((Part("", opening), Part(CONTENT, inside), Part("", closing)), False, False)
    return TurnOutline((Part(CONTENT, content),), has_reasoning, is_plain)


def _unused_stem(chat: Chat) -> str:
    """A word that no text of the conversation holds."""
    stem = "slotmark"
    texts = [chat.conversation.tools]
    for turn in chat.turns:
        texts += [turn.content, turn.reasoning, turn.name, turn.call_id]
        for call in turn.tool_calls:
            texts += [call.name, call.arguments, call.id]
    while any(stem in text for text in texts):
        stem += stem[-1]
    return stem
