"""A conversation as messages of OpenAI's form, and the text that the tokenizer's chat template writes for them."""

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
"""Today, for templates that ask: the day that Llama 3's own template takes where it has no clock."""

# What a template, a program from anywhere, may throw at a conversation that it was not written for.
_TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# The codes of strftime, those without a leading zero among them.
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", "-y", *"aAbBcCdDeFGgHIjklmMnprRsSTuUVwWxXyYzZf")
_CLOCK = re.compile(r"\b(?:strftime_now|date_string)\b")
_RANDOM = re.compile(r"\|\s*random\b")


@dataclass(frozen=True)
class Chat:
    """A conversation's messages and tools, and what the tokenizer's chat template makes of them.

    ``date``: the day that the template takes for today, as YYYY-MM-DD. ``has_text_arguments``: calls carry their
    arguments as JSON text, not as objects. Raises TemplateError where tools or arguments are not JSON, and where the
    template refuses the conversation.
    """

    conversation: Conversation
    tokenizer: PreTrainedTokenizerBase
    date: str = DEFAULT_DATE
    has_text_arguments: bool = False

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.conversation.turns

    @cached_property
    def tools(self) -> list[Any]:
        """The tools on offer; an empty list for none."""
        return _parse_json(self.conversation.tools, list, "tools") if self.conversation.tools else []

    @cached_property
    def messages(self) -> list[Message]:
        """The turns in OpenAI's form."""
        return [self._message(turn, f"turns[{index}]") for index, turn in enumerate(self.turns)]

    @property
    def has_calls(self) -> bool:
        return any(turn.tool_calls for turn in self.turns)

    def apply(self, messages: Sequence[Message], *, has_prompt: bool = False, has_tools: bool = True) -> str:
        """The template's text. ``has_prompt``: with the generation prompt behind it."""
        import jinja2

        tools = self.tools if self.tools and has_tools else None
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self._without_clock(tools),
                tokenize=False,
                add_generation_prompt=has_prompt,
            )
        except jinja2.TemplateError as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from error
        except _TEMPLATE_FAULTS as error:
            fault = f"{type(error).__name__}: {error}"
            raise TemplateError(f"the tokenizer's chat template fails on this conversation: {fault}") from error
        return str(text)

    def _without_clock(self, tools: list[Any] | None) -> str | None:
        """The template with its clock stopped; None for one that has no clock."""
        if not reads_clock(self.tokenizer):
            return None
        return _stop_clock(self.tokenizer.get_chat_template(tools=tools), self.date)

    def with_text_arguments(self) -> Chat:
        """The same conversation, arguments as JSON text."""
        return replace(self, has_text_arguments=True)

    def _message(self, turn: Turn, where: str) -> Message:
        """A key without a value is left out, since templates ask whether it is there."""
        optional = {
            "reasoning_content": turn.reasoning if turn.reasoning.strip() else "",
            "tool_calls": [self._call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(turn.tool_calls)],
            "name": turn.name,
            "tool_call_id": turn.call_id,
        }
        return {"role": turn.role, "content": turn.content} | {key: value for key, value in optional.items() if value}

    def _call(self, call: ToolCall, where: str) -> Message:
        arguments = _parse_json(call.arguments, dict, f"{where}.arguments")
        function = {"name": call.name, "arguments": call.arguments if self.has_text_arguments else arguments}
        return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}


def open_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, date: str) -> tuple[Chat, str]:
    """The conversation and its text, with arguments in the first form that the template takes: objects, then text.

    Raises TemplateError with the call and what the template says of it, where it takes neither.
    """
    chat = Chat(conversation, tokenizer, date)
    messages, _ = chat.messages, chat.tools  # raise where they are not JSON
    try:
        return chat, chat.apply(messages)
    except TemplateError as error:
        if not chat.has_calls:
            raise
        as_text = chat.with_text_arguments()
        try:
            return as_text, as_text.apply(as_text.messages)
        except TemplateError:
            raise TemplateError(f"{error}{_name_call(chat)}") from error


def _name_call(chat: Chat) -> str:
    """Which call the template fails on, in words; empty where the fault lies elsewhere."""
    for index, turn in enumerate(chat.turns):
        if not turn.tool_calls:
            continue
        messages = chat.messages[: index + 1]
        without = {key: value for key, value in messages[-1].items() if key != "tool_calls"} | {"content": "answer"}
        try:
            chat.apply([*messages[:-1], without])
        except TemplateError:
            return ""
        try:
            chat.apply(messages)
        except TemplateError:
            return (
                f" (the call of {turn.tool_calls[0].name!r} in turns[{index}], with its arguments as an object and as "
                "JSON text; use template: tulu)"
            )
    return ""


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise TemplateError where the tokenizer has no template, or one that no conversation can be rendered with."""
    import jinja2

    if not tokenizer.chat_template:
        raise TemplateError("the tokenizer has no chat template; use template: tulu")
    if any(_RANDOM.search(text) for text in template_texts(tokenizer)):
        raise TemplateError(
            "the tokenizer's chat template picks at random (`| random`), so no text could be written twice; use "
            "template: tulu"
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
    return _has_clock(template_texts(tokenizer))


@lru_cache(maxsize=16)
def _has_clock(templates: tuple[str, ...]) -> bool:
    return any(_CLOCK.search(text) for text in templates)


@lru_cache(maxsize=16)
def _stop_clock(template: str, date: str) -> str:
    """The template with a ``strftime_now`` of its own, since transformers passes no functions into it.

    It stands on a line of its own in front, whose end Jinja drops behind a block.
    """
    midnight = datetime.combine(Date.fromisoformat(date), time())
    written = "".join(f" | replace({f'%{d}'!r}, {midnight.strftime(f'%{d}')!r})" for d in _DIRECTIVES)
    macro = "{% macro strftime_now(format) %}{{ format" + written + " | replace('%%', '%') }}{% endmacro %}"
    return f"{macro}\n{template}"


def template_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's chat templates, most often one."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        return tuple(template.values())
    return (template,) if template else ()


def _parse_json(text: str, kind: type, where: str) -> Any:
    expected = {list: "a list", dict: "an object"}[kind]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{where}: expected {expected} as JSON text, found {text[:80]!r} ({error})") from error
    if not isinstance(value, kind):
        raise TemplateError(f"{where}: expected {expected} as JSON text, found {text[:80]!r}")
    return value
