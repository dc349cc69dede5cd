"""A conversation as OpenAI messages, and the text that the tokenizer's chat template writes for them.

Today's date in a template is a setting, so that a pool rendered tomorrow has the same tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date as Date
from datetime import datetime, time
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, ToolCall, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

DEFAULT_DATE = "2024-07-26"
"""The day that Llama 3's own template falls back to where it has no clock."""

# The codes of strftime, including those without a leading zero.
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", "-y", *"aAbBcCdDeFGgHIjklmMnprRsSTuUVwWxXyYzZf")
_CLOCK = re.compile(r"\b(?:strftime_now|date_string)\b")

# What a template, which may be any program, can raise on a conversation that it was not written for.
_TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_RANDOM = re.compile(r"\|\s*random\b")


@dataclass(frozen=True)
class Chat:
    """A conversation's messages and tools, and the text that the tokenizer's chat template writes for them.

    ``date``: the day that the template takes for today, as YYYY-MM-DD. ``has_text_arguments``: calls carry their
    arguments as JSON text, not as objects. Raises TemplateError if tools or arguments are not JSON, or if the
    template refuses the conversation.
    """

    conversation: Conversation
    tokenizer: PreTrainedTokenizerBase
    date: str = DEFAULT_DATE
    has_text_arguments: bool = False

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.conversation.turns

    @property
    def has_calls(self) -> bool:
        return any(turn.tool_calls for turn in self.turns)

    @cached_property
    def messages(self) -> list[Message]:
        """The turns as OpenAI messages."""
        return [self._message(turn, f"turns[{index}]") for index, turn in enumerate(self.turns)]

    @property
    def tools(self) -> list[Any]:
        """The tools on offer; an empty list for none."""
        return _parse_tools(self.conversation.tools) if self.conversation.tools else []

    def apply(
        self, messages: Sequence[Message] | None = None, *, has_prompt: bool = False, has_tools: bool = True
    ) -> str:
        """The template's text for the messages, or for those of the whole chat.

        ``has_prompt``: with the generation prompt behind it.
        """
        import jinja2

        messages = self.messages if messages is None else messages
        tools = (self.tools or None) if has_tools else None
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=_stop_clock(self.tokenizer.get_chat_template(tools=tools), self.date),
                tokenize=False,
                add_generation_prompt=has_prompt,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from error
        except _TEMPLATE_FAULTS as error:
            fault = f"{type(error).__name__}: {error}"
            raise TemplateError(f"the tokenizer's chat template fails on this conversation: {fault}") from error
        return str(text)

    def try_apply(self, messages: Sequence[Message], *, has_prompt: bool = False) -> str | None:
        """The template's text; None if the template refuses the messages."""
        try:
            return self.apply(messages, has_prompt=has_prompt)
        except TemplateError:
            return None

    def _message(self, turn: Turn, where: str) -> Message:
        # A key without a value is left out, since templates ask whether it is there.
        optional = {
            "reasoning_content": turn.reasoning if turn.reasoning.strip() else "",
            "tool_calls": [self._call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(turn.tool_calls)],
            "name": turn.name,
            "tool_call_id": turn.call_id,
        }
        return {"role": turn.role, "content": turn.content} | {key: value for key, value in optional.items() if value}

    def _call(self, call: ToolCall, where: str) -> Message:
        arguments = _parse_json(call.arguments, dict, "an object", f"{where}.arguments")
        function = {"name": call.name, "arguments": call.arguments if self.has_text_arguments else arguments}
        return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def open_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str) -> tuple[Chat, str]:
    """The conversation and its text, with arguments in the first form that the template takes: objects, then text.

    Raises TemplateError, with the call and what the template says about it, if the template takes neither.
    """
    chat = Chat(conversation, tokenizer, date)
    messages, _ = chat.messages, chat.tools  # raise if they are not JSON
    try:
        return chat, chat.apply(messages)
    except TemplateError as error:
        if not chat.has_calls:
            raise
        as_text = replace(chat, has_text_arguments=True)
        try:
            return as_text, as_text.apply()
        except TemplateError:
            raise TemplateError(f"{error}{_name_call(chat)}") from error


def _name_call(chat: Chat) -> str:
    """Which call the template fails on, in words; empty if something else is at fault."""
    for index, turn in enumerate(chat.turns):
        if not turn.tool_calls:
            continue
        before, message = chat.messages[:index], chat.messages[index]
        without = {key: value for key, value in message.items() if key != "tool_calls"} | {"content": "answer"}
        if chat.try_apply([*before, without]) is None:
            return ""
        if chat.try_apply([*before, message]) is None:
            return (
                f" (the call of {turn.tool_calls[0].name!r} in turns[{index}], with its arguments as an object and as "
                "JSON text; use template: tulu)"
            )
    return ""


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise TemplateError if the tokenizer has no template, or one that no conversation can be rendered with."""
    import jinja2

    if not tokenizer.chat_template:
        raise TemplateError("the tokenizer has no chat template; use template: tulu")
    if any(_RANDOM.search(text) for text in template_texts(tokenizer)):
        raise TemplateError(
            "the tokenizer's chat template picks at random (`| random`), so the same conversation would give different "
            "texts; use template: tulu"
        )
    try:
        tokenizer.get_chat_template()
    except ValueError as error:  # several templates by name, none of them the default
        raise TemplateError(f"the tokenizer's chat template cannot be used: {error}") from error
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "question"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the tokenizer's chat template is not valid Jinja: line {error.lineno}: {error.message}; correct "
            "chat_template.jinja, or use template: tulu"
        ) from error
    except (jinja2.TemplateError, *_TEMPLATE_FAULTS):
        return  # it objects to this conversation, not to every one


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template asks for today's date, so that its text depends on ``date``."""
    return any(map(_CLOCK.search, template_texts(tokenizer)))


def template_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's chat templates, most often one."""
    template: object = tokenizer.chat_template
    if isinstance(template, dict):
        return tuple(template.values())
    return (str(template),) if template else ()


@lru_cache(maxsize=16)
def _stop_clock(template: str, date: str) -> str:
    """The template with ``date`` for today; unchanged if it does not ask.

    transformers passes no functions into a template, so ``strftime_now`` becomes a macro. The macro is on a line of
    its own in front of the template: Jinja drops the line break after a block.
    """
    if not _CLOCK.search(template):
        return template
    midnight = datetime.combine(Date.fromisoformat(date), time())
    written = "".join(f" | replace({f'%{d}'!r}, {midnight.strftime(f'%{d}')!r})" for d in _DIRECTIVES)
    macro = "{% macro strftime_now(format) %}{{ format" + written + " | replace('%%', '%') }}{% endmacro %}"
    return f"{macro}\n{template}"


@lru_cache(maxsize=16)  # all rows of a source often offer the same tools
def _parse_tools(text: str) -> list[Any]:
    return _parse_json(text, list, "a list", "tools")


def _parse_json(text: str, kind: type, expected: str, where: str) -> Any:
    fault = ""
    try:
        value = json.loads(text)
        if isinstance(value, kind):
            return value
    except (ValueError, RecursionError) as error:
        fault = f" ({error})"
    raise TemplateError(f"{where}: expected {expected} as JSON text, found {text[:80]!r}{fault}")
