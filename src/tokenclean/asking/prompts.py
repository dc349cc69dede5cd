"""Prompts about conversations: what is shown of a conversation, where it is cut, and how it is fenced in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenclean.errors import TemplateError
from tokenclean.pool import Conversation, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CHARACTERS = 8192
"""Where a sample is cut for a model whose tokenizer is not available: about MAX_TOKENS of English."""
MAX_TOKENS = 2048

Shorten = Callable[[str], str]
"""Returns the beginning of a text that a model is to see: all of it where it is short enough."""

_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool result"}


@dataclass(frozen=True)
class Prompt:
    """``text``: the one user message that a model gets. ``cut_characters``: how many of the sample it leaves out, which
    the message says too."""

    text: str
    cut_characters: int = 0


def first_characters(count: int = MAX_CHARACTERS) -> Shorten:
    """Cuts a text after ``count`` characters."""
    return lambda text: text[:count]


def first_tokens(tokenizer: PreTrainedTokenizerBase, count: int = MAX_TOKENS) -> Shorten:
    """Cuts a text after ``count`` tokens of a fast tokenizer."""

    def shorten(text: str) -> str:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        return text if len(offsets) <= count else text[: offsets[count][0]]

    return shorten


def fence_for(text: str) -> str:
    """A line that ``text`` does not hold, so that no sample can fake its own end."""
    fence = "=" * 10
    while fence in text:
        fence += "="
    return fence


def paragraphs(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Speaker and text of each paragraph of a conversation as a model is shown it: the tools on offer, if any, then one
    for each turn. Raises TemplateError for a row of token ids, which has no text."""
    if conversation.kind == "tokens":
        raise TemplateError(
            f"{conversation.file}:{conversation.line}: row {conversation.id!r} holds token ids without their text, "
            "which no model can read; take the texts it was made from, or remove such rows from the pool"
        )
    if conversation.kind == "text":
        yield "Text", conversation.turns[0].content
        return
    names = {"user": "Prompt", "assistant": "Completion"} if conversation.kind == "completion" else _SPEAKERS
    if conversation.tools:
        yield "Tools on offer", conversation.tools
    for turn in conversation.turns:
        yield names.get(turn.role, turn.role), said(turn)


def said(turn: Turn) -> str:
    """What a turn says: thoughts, content and calls."""
    thoughts = [f"(thinks) {turn.reasoning}"] if turn.reasoning.strip() else []
    calls = [f"(calls {call.name}) {call.arguments}" for call in turn.tool_calls]
    return "\n".join([*thoughts, turn.content, *calls])
