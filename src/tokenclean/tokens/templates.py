"""From a conversation to the text a model sees, with the character spans that are training targets (ỹ = 1, §3.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation
from tokenclean.tokens.rendered_text import ContentSpan, Rendered
from tokenclean.tokens.tokenizer_template.chat import DEFAULT_DATE, Chat, check_chat_template, open_chat
from tokenclean.tokens.tokenizer_template.frames import find_frame
from tokenclean.tokens.tokenizer_template.locate import locate
from tokenclean.tokens.tokenizer_template.marks import KEY, mark_texts, thought_in
from tokenclean.tokens.tulu import render_tulu
from tokenclean.tokens.turn_markers import KNOWN_ENDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("tulu", "tokenizer")

NOTE_MOVED = "thoughts in an answer's content were given to the template as reasoning, which it writes its own way"
NOTE_RENDERED = "already rendered: no second end token"
_WHITESPACE = (" ", "\n", "\t")


def render(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: str = "tulu", date: str = DEFAULT_DATE
) -> Rendered:
    """Render one conversation with ``tulu`` (§10.1) or ``tokenizer`` (the model's own chat template).

    A ``completion`` row has no tags under either: prompt and completion, joined by a space unless one side has
    whitespace there, and the EOS. A ``text`` row is its text and the EOS. A row that ends with an end token already
    gets no second one, and one that begins with the BOS no second BOS. ``date``: today, for chat templates that ask, as
    YYYY-MM-DD. Raises TemplateError if the conversation cannot be rendered, such as one of kind ``tokens``, which has
    no text.
    """
    if conversation.kind == "tokens":
        raise TemplateError("a row of token ids has no text to render")
    if conversation.kind in ("completion", "text"):
        return _render_plain(conversation, tokenizer)
    if template == "tulu":
        return render_tulu(conversation, _eos(tokenizer))
    return _render_chat_template(conversation, tokenizer, date)


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raise TemplateError if no conversation at all can be rendered with this template and tokenizer."""
    if template not in TEMPLATES:
        raise TemplateError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    _eos(tokenizer)
    if template == "tokenizer":
        check_chat_template(tokenizer)


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise TemplateError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
    return str(tokenizer.eos_token)


def _render_plain(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """A completion or a text without tags, and the EOS unless it ends already."""
    prompt = conversation.turns[0].content if conversation.kind == "completion" else ""
    answer, start, eos = conversation.turns[-1], len(prompt), _eos(tokenizer)
    is_joined = not prompt or prompt.endswith(_WHITESPACE) or answer.content.startswith(_WHITESPACE)
    # The joining space belongs to the completion: the model has to produce it.
    text = prompt + ("" if is_joined else " ") + answer.content
    written = text.rstrip()
    is_ended = start < len(written) and _ends(written, eos, tokenizer)
    target = (start, len(written) if is_ended else len(text) + len(eos))
    length = len(answer.content)
    end_token = (len(text), len(text) if is_ended else target[1])  # that of a text which is ended is in the content
    content = ContentSpan(len(conversation.turns) - 1, len(text) - length, len(text), 0, length, end_token)
    return Rendered(
        text if is_ended else text + eos,
        (target,) if answer.is_trained else (),
        (content,),
        adds_bos=not (tokenizer.bos_token and text.startswith(str(tokenizer.bos_token))),
        notes=(NOTE_RENDERED,) if is_ended else (),
    )


def _ends(text: str, eos: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the text ends with an end token of this tokenizer; that of another one is ordinary text."""
    ends = [end for end in KNOWN_ENDS if text.endswith(end)]
    tokens = tokenizer.added_tokens_decoder.values() if ends else ()
    return text.endswith(eos) or any(token.content in ends for token in tokens)


def _render_chat_template(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str) -> Rendered:
    """Render with the tokenizer's chat template, which is given reasoning, tool calls and the tools on offer too.

    A thought at the start of an answer's content stays there, and is given as reasoning if its answer cannot be located
    otherwise. Raises TemplateError if the template refuses the conversation, or breaks a rule of ``chat_template``.
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
    contents = tuple(_with_thought(content, offsets.get(content.turn, 0)) for content in rendered.contents)
    is_same = all(conversation.turns[index].content.strip() in rendered.text for index in offsets)
    notes = rendered.notes if is_same else (*rendered.notes, NOTE_MOVED)
    return replace(rendered, contents=contents, notes=notes)


def _with_thought(content: ContentSpan, length: int) -> ContentSpan:
    """The place of a content whose first ``length`` characters, a thought, the template was given as reasoning."""
    return replace(content, skipped=content.skipped + length, length=content.length + length)


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
        as_text = replace(chat, has_text_arguments=True)
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
