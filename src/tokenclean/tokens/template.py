"""From a conversation to the text a model sees, with the character spans that are training targets (ỹ = 1, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["tulu", "tokenizer"]
TEMPLATES: tuple[str, ...] = get_args(Template)

_WHITESPACE = (" ", "\n", "\t")


@dataclass(frozen=True)
class ContentSpan:
    """Where an assistant turn's content lies in the text.

    ``turn``: index of the turn. ``start``/``end``: characters of the text. ``skipped``: characters of the turn's
    content that the template stripped on the left, so content character c lies at ``start + c - skipped``.
    """

    turn: int
    start: int
    end: int
    skipped: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    ``targets``: character spans [start, end) that are trained: each assistant content with the end token behind it,
    and with the spaces in front of it that a template writes (Mistral's ``[/INST] Hello``: `` Hello`` is one token).
    ``contents``: the assistant contents alone.
    """

    text: str
    targets: tuple[tuple[int, int], ...]
    contents: tuple[ContentSpan, ...]
    adds_bos: bool = True
    """Whether tokenization may add the tokenizer's BOS; a chat template writes its own where it wants one."""


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: str = "tulu") -> Rendered:
    """Render one conversation with ``tulu`` (§10.1) or ``tokenizer`` (the model's own chat template).

    A ``completion`` row carries no tags under either: prompt and completion, joined by a space unless one side has
    whitespace there, and the EOS. Raises TemplateError when the conversation cannot be rendered.
    """
    if conversation.kind == "completion":
        return _render_completion(conversation, _eos(tokenizer))
    if template == "tulu":
        return _render_tulu(conversation, _eos(tokenizer))
    return _render_chat_template(conversation, tokenizer)


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raise TemplateError where no conversation at all can be rendered with this template and tokenizer."""
    if template not in TEMPLATES:
        raise TemplateError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    _eos(tokenizer)
    if template != "tokenizer":
        return
    if not tokenizer.chat_template:
        raise TemplateError("the tokenizer has no chat template; use template: tulu")
    try:
        tokenizer.get_chat_template()
    except ValueError as error:  # several templates by name, none of them the default
        raise TemplateError(f"the tokenizer's chat template cannot be used: {error}") from error


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise TemplateError("the tokenizer has no EOS token, which ends every response; set tokenizer.eos_token")
    return str(tokenizer.eos_token)


def _render_tulu(conversation: Conversation, eos: str) -> Rendered:
    text, targets, contents = "", [], []
    for index, turn in enumerate(conversation.turns):
        content = turn.content.strip()
        text += f"<|{turn.role}|>\n"
        start = len(text)
        text += content
        if turn.role == "assistant":
            skipped = len(turn.content) - len(turn.content.lstrip())
            contents.append(ContentSpan(index, start, len(text), skipped))
            text += eos
            targets.append((start, len(text)))
        text += "\n"
    return Rendered(text.strip(), tuple(targets), tuple(contents))


def _render_completion(conversation: Conversation, eos: str) -> Rendered:
    prompt, completion = conversation.turns[0].content, conversation.turns[1].content
    joint = " " if prompt and not prompt.endswith(_WHITESPACE) and not completion.startswith(_WHITESPACE) else ""
    start = len(prompt) + len(joint)
    text = prompt + joint + completion + eos
    # The joining space belongs to the completion: the model has to produce it.
    return Rendered(text, ((len(prompt), len(text)),), (ContentSpan(1, start, start + len(completion), 0),))


def _render_chat_template(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Find the contents by rendering twice, the second time with a unique mark in place of each of them.

    The glue between the marks, filled with the real contents, must give the real text to the letter.
    """
    turns = conversation.turns
    everything = "".join(turn.content for turn in turns)
    stem = "\ue000mark"
    while stem in everything:
        stem += "k"
    marks = {i: f"{stem}{i}\ue001" for i, turn in enumerate(turns) if turn.role == "assistant"}
    text = _apply(tokenizer, [(turn.role, turn.content) for turn in turns])
    marked = _apply(tokenizer, [(turn.role, marks.get(i, turn.content)) for i, turn in enumerate(turns)])
    glue: list[str] = []
    rest = marked
    for mark in marks.values():
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise TemplateError("the chat template drops, repeats or rewrites an assistant turn; use template: tulu")
        glue.append(before)
    glue.append(rest)
    for strip in (False, True):
        filled = [turns[i].content.strip() if strip else turns[i].content for i in marks]
        if "".join(a + b for a, b in zip(glue, [*filled, ""], strict=True)) == text:
            break
    else:
        raise TemplateError("the chat template rewrites an assistant's content, so it cannot be located; use tulu")
    end_tokens = _special_tokens(tokenizer, len(tokenizer))
    targets, contents, position = [], [], 0
    for number, (index, content) in enumerate(zip(marks, filled, strict=True)):
        before = glue[number]
        position += len(before)
        start, end = position, position + len(content)
        skipped = len(turns[index].content) - len(turns[index].content.lstrip()) if strip else 0
        contents.append(ContentSpan(index, start, end, skipped))
        after = glue[number + 1]
        blank = len(after) - len(after.lstrip(" \n"))
        token = next((t for t in end_tokens if after.startswith(t, blank)), "")
        spaces = len(before) - len(before.rstrip(" "))
        targets.append((start - spaces, end + blank + len(token) if token else end))
        position = end
    return Rendered(text, tuple(targets), tuple(contents), adds_bos=False)


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, _vocabulary_size: int) -> tuple[str, ...]:
    """Texts of the special tokens, longest first; kept, since listing Gemma's 6,000 takes 7 ms, for every row."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted(special, key=len, reverse=True))


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]]) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages], tokenize=False
        )
    except jinja2.TemplateError as error:
        raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from error
    return str(text)
