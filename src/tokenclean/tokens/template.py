"""From a conversation to the text a model sees, with the character spans that are training targets (ỹ = 1, §3.2)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, ToolCall, Turn
from tokenclean.tokens.chat_messages import DEFAULT_DATE, check_chat_template
from tokenclean.tokens.chat_template import render_chat_template
from tokenclean.tokens.rendered_text import ContentSpan, Rendered
from tokenclean.tokens.role_markers import KNOWN_ENDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["tulu", "tokenizer"]
TEMPLATES: tuple[str, ...] = get_args(Template)

NOTE_RENDERED = "already rendered: no second end token"
_WHITESPACE = (" ", "\n", "\t")


def render(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: str = "tulu", date: str = DEFAULT_DATE
) -> Rendered:
    """Render one conversation with ``tulu`` (§10.1) or ``tokenizer`` (the model's own chat template).

    A ``completion`` row carries no tags under either: prompt and completion, joined by a space unless one side has
    whitespace there, and the EOS. A ``text`` row is its text and the EOS. One that ends with an end token already gets
    no second one, one that begins with the BOS no second BOS. ``date``: today, for chat templates that ask, as
    YYYY-MM-DD. Raises TemplateError when the conversation cannot be rendered, as one of kind ``tokens``, which has no
    text.
    """
    if conversation.kind == "tokens":
        raise TemplateError("a row of token ids has no text to render")
    if conversation.kind == "completion":
        return _render_completion(conversation, tokenizer)
    if conversation.kind == "text":
        return _render_text(conversation, tokenizer)
    if template == "tulu":
        return _render_tulu(conversation, _eos(tokenizer))
    return render_chat_template(conversation, tokenizer, date)


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raise TemplateError where no conversation at all can be rendered with this template and tokenizer."""
    if template not in TEMPLATES:
        raise TemplateError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    _eos(tokenizer)
    if template == "tokenizer":
        check_chat_template(tokenizer)


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise TemplateError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
    return str(tokenizer.eos_token)


def _render_tulu(conversation: Conversation, eos: str) -> Rendered:
    turns = _with_tools(conversation)
    text, targets, contents = "", [], []
    # A system turn made for the tools has no index in the conversation: it counts as turn -1.
    for index, turn in enumerate(turns, start=len(conversation.turns) - len(turns)):
        content = turn.content.strip()
        text += f"<|{turn.role}|>\n"
        if turn.role == "assistant":
            start = len(text)
            text += _thoughts(turn)
            skipped = len(turn.content) - len(turn.content.lstrip())
            contents.append(ContentSpan(index, len(text), len(text) + len(content), skipped))
            text += "\n".join(filter(None, [content, *map(_tool_call, turn.tool_calls)])) + eos
            if turn.is_trained:
                targets.append((start, len(text)))
        else:
            text += content
        text += "\n"
    return Rendered(text.strip(), tuple(targets), tuple(contents))


def _with_tools(conversation: Conversation) -> tuple[Turn, ...]:
    """The turns with the tools on offer in the last line of the system turn, which is made where there is none."""
    turns = conversation.turns
    if not conversation.tools:
        return turns
    line = f"Tools: {conversation.tools}"
    if turns[0].role != "system":
        return (Turn("system", line), *turns)
    return (replace(turns[0], content="\n".join(filter(None, [turns[0].content.strip(), line]))), *turns[1:])


def _thoughts(turn: Turn) -> str:
    """§10.1 knows no reasoning and no tools: they stand in the tags that most open models use."""
    reasoning = turn.reasoning.strip()
    return f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""


def _tool_call(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments}}}\n</tool_call>'


def _render_completion(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    prompt, completion = conversation.turns[0].content, conversation.turns[1].content
    joint = " " if prompt and not prompt.endswith(_WHITESPACE) and not completion.startswith(_WHITESPACE) else ""
    # The joining space belongs to the completion: the model has to produce it.
    rendered = _end(prompt + joint + completion, len(prompt), tokenizer)
    start = len(prompt) + len(joint)
    contents = (ContentSpan(1, start, start + len(completion), 0),)
    return replace(rendered, contents=contents, targets=rendered.targets if conversation.turns[1].is_trained else ())


def _render_text(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    content = conversation.turns[0].content
    return replace(_end(content, 0, tokenizer), contents=(ContentSpan(0, 0, len(content), 0),))


def _is_end(text: str, eos: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the text ends with an end token of this tokenizer; that of another one is a text like any other."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return text.endswith((eos, *known.intersection(KNOWN_ENDS)))


def _end(text: str, start: int, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The text, trained from ``start``, with the EOS where it does not end already."""
    eos, bos = _eos(tokenizer), tokenizer.bos_token
    adds_bos = not (bos and text.startswith(str(bos)))
    ended = text.rstrip()
    if start < len(ended) and ended.endswith((eos, *KNOWN_ENDS)) and _is_end(ended, eos, tokenizer):
        return Rendered(text, ((start, len(ended)),), (), adds_bos, (NOTE_RENDERED,))
    return Rendered(text + eos, ((start, len(text) + len(eos)),), (), adds_bos)
