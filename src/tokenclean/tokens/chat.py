"""A conversation as chat templates read it, rendered with marks in place of its texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, ToolCall, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

# What a template, a program from anywhere, may throw at a conversation that it was not written for.
_TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Chat:
    """A conversation's turns and tools, and what the tokenizer's chat template makes of them.

    Raises TemplateError where tools or arguments are no JSON, and where the template refuses the conversation.
    """

    conversation: Conversation
    tokenizer: PreTrainedTokenizerBase

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.conversation.turns

    @cached_property
    def tools(self) -> list[Any]:
        """The tools on offer; an empty list for none."""
        return _parse_json(self.conversation.tools or "[]", list, "tools")

    @cached_property
    def messages(self) -> list[Message]:
        """The turns in OpenAI's form."""
        return [_message(turn, f"turns[{index}]") for index, turn in enumerate(self.turns)]

    @cached_property
    def marked(self) -> list[Message]:
        """Each message with a mark for each text in it.

        Those of turn 3 are ``{stem}3c_`` for the content, ``{stem}3r_`` for the reasoning, and ``{stem}3k0_`` and
        ``{stem}3v0_`` for a key and a value in place of the arguments of its call 0: signs that JSON, XML and Python
        write as they stand.
        """
        return [_mark(message, f"{self.stem}{index}") for index, message in enumerate(self.messages)]

    @cached_property
    def stem(self) -> str:
        return self.unused("mark")

    def unused(self, stem: str) -> str:
        """The stem, made longer until the conversation does not hold it."""
        while stem in self._written:
            stem += stem[-1]
        return stem

    @cached_property
    def _written(self) -> str:
        return json.dumps([self.messages, self.tools], ensure_ascii=False)

    def apply(self, messages: Sequence[Message], *, has_prompt: bool = False, has_tools: bool = True) -> str:
        """The template's text. ``has_prompt``: with the generation prompt behind it."""
        import jinja2

        tools = self.tools if self.tools and has_tools else None
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=has_prompt
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from error
        except _TEMPLATE_FAULTS as error:
            fault = f"{type(error).__name__}: {error}"
            raise TemplateError(f"the tokenizer's chat template fails on this conversation: {fault}") from error
        return str(text)

    def with_message(self, index: int, message: Message) -> str:
        """The conversation rendered with one message replaced."""
        return self.apply([*self.messages[:index], message, *self.messages[index + 1 :]])

    @cached_property
    def all_marked(self) -> str:
        """The conversation rendered with all its marks: what stands between two of them is the template's own."""
        return self.apply(self.marked)

    def marks(self, rendering: str) -> list[re.Match[str]]:
        """Every mark in the rendering, in order; group 1 is the number of its turn."""
        return list(re.finditer(rf"{self.stem}(\d+)[crkv]\d*_", rendering))

    def glue_around(self, rendering: str, index: int) -> tuple[str, str]:
        """What stands in front of and behind the marks of a turn, up to the marks of the turns beside it."""
        marks = self.marks(rendering)
        own = [place for place, mark in enumerate(marks) if int(mark[1]) == index]
        if not own or own[-1] - own[0] >= len(own):  # another turn's text in between
            raise unlocated(index)
        before = rendering[marks[own[0] - 1].end() if own[0] else 0 : marks[own[0]].start()]
        following = marks[own[-1] + 1 :]
        return before, rendering[marks[own[-1]].end() : following[0].start() if following else len(rendering)]

    def glue_at_end(self, rendering: str) -> str:
        """What stands behind the last mark."""
        marks = self.marks(rendering)
        return rendering[marks[-1].end() if marks else 0 :]


def unlocated(index: int) -> TemplateError:
    """The error for an answer that the template does not write as it stands."""
    return TemplateError(
        f"the chat template drops, repeats or rewrites part of the answer in turns[{index}], so it cannot be located; "
        "use template: tulu"
    )


def leading_end_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token that the text begins with, and the blanks in front of it; empty where there is none."""
    blank = len(text) - len(text.lstrip(" \n"))
    token = next((t for t in special_tokens(tokenizer) if text.startswith(t, blank)), "")
    return text[:blank] + token if token else ""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts of the special tokens, longest first."""
    return _special_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, _vocabulary_size: int) -> tuple[str, ...]:
    """Kept, since listing Gemma's 6,000 takes 7 ms, for every row."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted(special, key=len, reverse=True))


def _message(turn: Turn, where: str) -> Message:
    """A key that has nothing to say is left out, since templates ask for its presence."""
    optional = {
        "reasoning_content": turn.reasoning if turn.reasoning.strip() else "",
        "tool_calls": [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(turn.tool_calls)],
        "name": turn.name,
        "tool_call_id": turn.call_id,
    }
    return {"role": turn.role, "content": turn.content} | {key: value for key, value in optional.items() if value}


def _call(call: ToolCall, where: str) -> Message:
    arguments = _parse_json(call.arguments, dict, f"{where}.arguments")
    function = {"name": call.name, "arguments": arguments}
    return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def _parse_json(text: str, kind: type, where: str) -> Any:
    expected = {list: "a list", dict: "an object"}[kind]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{where}: expected {expected} as JSON text, found {text[:80]!r} ({error})") from error
    if not isinstance(value, kind):
        raise TemplateError(f"{where}: expected {expected} as JSON text, found {text[:80]!r}")
    return value


def _mark(message: Message, mark: str) -> Message:
    """The message with marks for its texts. A blank system turn or answer stays: a template may pass it over."""
    marked = dict(message)
    if message["content"].strip() or message["role"] in ("user", "tool"):
        marked["content"] = f"{mark}c_"
    if "reasoning_content" in message:
        marked["reasoning_content"] = f"{mark}r_"
    if "tool_calls" in message:
        marked["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": {f"{mark}k{n}_": f"{mark}v{n}_"}}}
            for n, call in enumerate(message["tool_calls"])
        ]
    return marked
