"""The chat template that a trained model is handed over with: at inference it gives the ids that training saw."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.tokens.template import check_template, render
from tokenclean.tokens.tokenize import tokenize_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
"""``template.render`` under ``tulu`` as Jinja over OpenAI's messages; ``add_generation_prompt``: up to the answer."""

_SAMPLE = Conversation("sample", "", (Turn("user", "question"), Turn("assistant", "answer")))


def give_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Let ``apply_chat_template`` render as training under ``template`` (tulu, tokenizer) did, with the same ids.

    It lets the tokenizer add nothing, so under ``tulu`` the text begins with what the tokenizer puts in front of one
    itself: BOS, and behind it the space that some make up at the start of a text. Raises TemplateError where the
    tokenizer cannot serve the template.
    """
    check_template(tokenizer, template)
    if template != "tulu":
        return
    expected = tokenize_pool([_SAMPLE], tokenizer).input_ids[0].tolist()
    messages = [{"role": turn.role, "content": turn.content} for turn in _SAMPLE.turns]
    added = _added_in_front(tokenizer)
    for first in (added, f"{added} "):
        tokenizer.chat_template = ("{{- " + json.dumps(first) + " -}}\n" if first else "") + TULU_JINJA
        if tokenizer.apply_chat_template(messages, return_dict=False) == expected:
            return
    raise TemplateError(
        "no chat template makes this tokenizer give the ids of training, which begin with what it adds itself; serve "
        "the adapter with token ids"
    )


def end_token_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Ids of the tokens that end an answer under ``template``: where generation has to stop.

    The EOS, and under ``tokenizer`` the end token of its own template, such as ``<|im_end|>``.
    """
    rendered = render(_SAMPLE, tokenizer, template)
    (target,), (content,) = rendered.targets, rendered.contents
    tokens = {str(tokenizer.eos_token), rendered.text[content.end : target[1]].strip()}
    ids: list[Any] = [tokenizer.get_vocab().get(token) for token in tokens]  # a tag that is spelled out has none
    return sorted(number for number in ids if number is not None)


def _added_in_front(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that tokenization puts in front of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    count = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return "".join(tokenizer.convert_ids_to_tokens(whole[:count]))
