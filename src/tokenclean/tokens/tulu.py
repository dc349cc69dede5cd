"""The tulu template of the paper (§10.1), in Python for training and in Jinja for inference, with the same text."""

from __future__ import annotations

import json
from dataclasses import replace

from tokenclean.pool.conversation import Conversation, ToolCall, Turn
from tokenclean.tokens.rendered_text import ContentSpan, Rendered, leading_blanks

TULU_JINJA = r"""
{%- set ns = namespace(text='') -%}
{%- set tools_line = 'Tools: ' + tools | tojson(separators=(',', ':')) if tools else '' -%}
{%- if tools_line and messages[0]['role'] != 'system' -%}
    {%- set ns.text = '<|system|>\n' + tools_line + '\n' -%}
{%- endif -%}
{%- for message in messages -%}
    {%- set content = (message['content'] or '') | trim -%}
    {%- set ns.text = ns.text + '<|' + message['role'] + '|>\n' -%}
    {%- if message['role'] == 'assistant' -%}
        {%- set reasoning = (message['reasoning_content'] or '') | trim -%}
        {%- if reasoning -%}
            {%- set ns.text = ns.text + '<think>\n' + reasoning + '\n</think>\n\n' -%}
        {%- endif -%}
        {%- set said = namespace(parts=[content] if content else []) -%}
        {%- for call in message['tool_calls'] or [] -%}
            {%- set function = call['function'] or call -%}
            {%- set arguments = function['arguments'] -%}
            {%- set arguments = arguments if arguments is string else arguments | tojson -%}
            {%- set name = function['name'] | tojson -%}
            {%- set text = '<tool_call>\n{"name": ' + name + ', "arguments": ' + arguments + '}\n</tool_call>' -%}
            {%- set said.parts = said.parts + [text] -%}
        {%- endfor -%}
        {%- set ns.text = ns.text + said.parts | join('\n') + eos_token -%}
    {%- elif loop.first and message['role'] == 'system' and tools_line -%}
        {%- set ns.text = ns.text + content + ('\n' if content else '') + tools_line -%}
    {%- else -%}
        {%- set ns.text = ns.text + content -%}
    {%- endif -%}
    {%- set ns.text = ns.text + '\n' -%}
{%- endfor -%}
{{- ns.text + '<|assistant|>\n' if add_generation_prompt else ns.text.strip() -}}
""".strip()
"""``render_tulu`` as Jinja over OpenAI messages; with ``add_generation_prompt`` up to where the answer begins."""


def render_tulu(conversation: Conversation, eos: str) -> Rendered:
    """Render a chat: a tag for each turn, the EOS after each answer."""
    turns = _with_tools(conversation)
    text, targets, contents = "", [], []
    # A system turn added for the tools has no index in the conversation: it counts as turn -1.
    for index, turn in enumerate(turns, start=len(conversation.turns) - len(turns)):
        content = turn.content.strip()
        text += f"<|{turn.role}|>\n"
        if turn.role == "assistant":
            start = len(text)
            text += _thoughts(turn)
            begin, text = len(text), text + "\n".join(filter(None, [content, *map(_tool_call, turn.tool_calls)])) + eos
            place = (begin, begin + len(content), leading_blanks(turn.content), len(turn.content))
            contents.append(ContentSpan(index, *place, (len(text) - len(eos), len(text))))
            if turn.is_trained:
                targets.append((start, len(text)))
        else:
            text += content
        text += "\n"
    return Rendered(text.strip(), tuple(targets), tuple(contents))


def _with_tools(conversation: Conversation) -> tuple[Turn, ...]:
    """The turns with the tools on offer in the last line of the system turn, which is added if there is none."""
    turns = conversation.turns
    if not conversation.tools:
        return turns
    line = f"Tools: {conversation.tools}"
    if turns[0].role != "system":
        return (Turn("system", line), *turns)
    return (replace(turns[0], content="\n".join(filter(None, [turns[0].content.strip(), line]))), *turns[1:])


def _thoughts(turn: Turn) -> str:
    """§10.1 has no reasoning and no tools: they get the tags that most open models use."""
    reasoning = turn.reasoning.strip()
    return f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""


def _tool_call(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments}}}\n</tool_call>'
