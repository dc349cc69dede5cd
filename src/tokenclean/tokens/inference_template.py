"""The chat template that a trained model is saved with: at inference it gives the ids that training saw."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenclean.errors import TemplateError
from tokenclean.pool.conversation import Conversation, Turn
from tokenclean.tokens.templates import check_template, render
from tokenclean.tokens.tokenize import tokenize_pool
from tokenclean.tokens.tulu import TULU_JINJA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = Conversation("sample", "", (Turn("user", "question"), Turn("assistant", "answer")))


def give_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Make ``apply_chat_template`` render as training under ``template`` (tulu, tokenizer) did, with the same ids.

    ``apply_chat_template`` lets the tokenizer add nothing, so under ``tulu`` the template begins with what the
    tokenizer adds in front of a text: BOS, and after it the space that some begin a text with. Raises TemplateError if
    the tokenizer cannot serve the template.
    """
    check_template(tokenizer, template)
    if template != "tulu":
        return
    expected = tokenize_pool([SAMPLE], tokenizer).input_ids[0].tolist()
    messages = [{"role": str(turn.role), "content": turn.content} for turn in SAMPLE.turns]
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
    """Ids of the tokens that end an answer under ``template``, where generation has to stop.

    The EOS, and under ``tokenizer`` the end token of its own template, such as ``<|im_end|>``.
    """
    rendered = render(SAMPLE, tokenizer, template)
    (target,), (content,) = rendered.targets, rendered.contents
    vocabulary = tokenizer.get_vocab()
    tokens = {str(tokenizer.eos_token), rendered.text[content.end : target[1]].strip()}
    return sorted(vocabulary[token] for token in tokens if token in vocabulary)  # a tag that is spelled out has no id


def _added_in_front(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that tokenization puts in front of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    count = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return "".join(tokenizer.convert_ids_to_tokens(whole[:count]))
