"""Rendering with the model's own chat template: the text that it writes, with every text in it accounted for.

A template is a program whose output says nothing about where a turn begins or ends. So the conversation is rendered
once more with a mark in place of each text (``marks``), and that skeleton filled with the texts must be exactly the
real rendering (``skeleton``). Nothing is searched for in the real text, which may hold the template's own tags.
Conversations of one shape share their skeleton (``frames``): most rows of a pool cost one rendering.

The rules (docs/reference/templates.md explains them):

- A text that the template leaves out, or writes twice, refuses the row: of any role, and of tools and arguments too
  (``checks``).
- A thought may be left out if a later question or answer follows, as it is at inference. It is reported.
- An answer may lose the blanks around it and nothing else. A turn of another role that is rewritten (escaped,
  shortened) is noted (``locate``).
- What belongs to an answer beside its texts: see ``answer_edges``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation
from tokenclean.tokens.chat_template.date import DEFAULT_DATE
from tokenclean.tokens.chat_template.locate import locate
from tokenclean.tokens.chat_template.messages import Chat, open_chat
from tokenclean.tokens.chat_template.outline_cache import find_frame
from tokenclean.tokens.chat_template.text_marks import KEY, mark_texts, thought_in
from tokenclean.tokens.rendered_text import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTE_MOVED = "thoughts in an answer's content were given to the template as reasoning, which it writes its own way"


def render_chat_template(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str = DEFAULT_DATE
) -> Rendered:
    """Render with the tokenizer's chat template, which is given reasoning, tool calls and the tools on offer too.

    A thought at the start of an answer's content stays there, and is given as reasoning if its answer cannot be located
    otherwise. Raises TemplateError if the template refuses the conversation, or breaks a rule of this module.
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
    """Thoughts inside contents as reasoning; for each such turn, where in its content the answer begins."""
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
            return _locate(as_text, as_text.apply())
        except TemplateError:
            pass
    return _locate(chat, text)


def _locate(chat: Chat, text: str) -> Rendered:
    """With marks for blank contents too, which alone show where a blank answer is; without them if that changes what
    the template writes."""
    try:
        return locate(chat, text, marks_blanks=True)
    except TemplateError:
        if all(turn.content.strip() for turn in chat.turns):
            raise
    return locate(chat, text, marks_blanks=False)


def _writes_python(chat: Chat) -> bool:
    """Whether the template writes arguments as Python does (``{'city': 'Rome'}``), so was made for JSON text."""
    try:
        skeleton = find_frame(mark_texts(chat, marks_blanks=True)).skeleton
    except TemplateError:
        return False
    return any(mark.kind == KEY and skeleton.glue[number].endswith("{'") for number, mark in enumerate(skeleton.marks))
