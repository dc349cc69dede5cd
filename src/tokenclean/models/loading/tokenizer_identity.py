"""Whether two tokenizers give the same ids for the same text, as scores of two models require (§4.2.1)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenclean.errors import TemplateError, TokenizerMismatchError
from tokenclean.pool import Pool
from tokenclean.tokens import render
from tokenclean.tokens.encoding import fast_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_SEGMENTING_PARTS = ("normalizer", "pre_tokenizer")
_ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_SAMPLE_TEXTS = 200
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")

_State = dict[str, Any]
"""Content of a ``tokenizer.json``."""

_Difference = tuple[str, object, object]
"""What differs, and what base and reference have of it."""


def sample_texts(pool: Pool, tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    """Texts of the pool's first rows, on which two tokenizers are compared; tokenized rows are decoded, and rows that
    the template refuses left out."""
    texts = []
    for conversation in pool.conversations[:_SAMPLE_TEXTS]:
        if conversation.tokens is not None:
            texts.append(str(tokenizer.decode(conversation.tokens.input_ids)))
            continue
        with suppress(TemplateError):
            texts.append(render(conversation, tokenizer, template).text)
    return texts


def check_same_tokenizer(
    base: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase, texts: Iterable[str]
) -> list[str]:
    """Raise TokenizerMismatchError at the first difference in ids; return descriptions of the roles that differ.

    Compares token-to-id maps, merges and model settings, normalizer, pre-tokenizer, how added tokens are found, and
    last the ids of ``texts``. What special tokens *mean* (an instruct model's other EOS, its BOS rule) may differ: text
    is always rendered and tokenized with the base's tokenizer.
    """
    state, other = _state(base), _state(reference)
    vocabularies = _vocabulary_differences(base.get_vocab(), reference.get_vocab())
    for what, mine, theirs in chain(vocabularies, _differences(state, other, texts)):
        raise TokenizerMismatchError(
            f"base and reference do not share their tokenizer: {what} (base: {mine}; reference: {theirs}). "
            "Choose a reference of the same model family"
        )
    notes = []
    for role in _ROLES:
        mine, theirs = base.special_tokens_map.get(role), reference.special_tokens_map.get(role)
        if mine != theirs:
            notes.append(f"{role}: base {mine}, reference {theirs}")
    if state.get("post_processor") != other.get("post_processor"):
        notes.append("BOS and EOS are added around a text differently")
    if base.chat_template != reference.chat_template:
        notes.append("chat templates differ")
    return notes


def _state(tokenizer: PreTrainedTokenizerBase) -> _State:
    return json.loads(fast_backend(tokenizer).to_str())


def _whole_text_backend(state: _State) -> Tokenizer:
    """A copy without truncation and padding, which tokenizers saved after training often have."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps({**state, "truncation": None, "padding": None}))


def _differences(state: _State, other: _State, texts: Iterable[str]) -> Iterator[_Difference]:
    yield from _model_differences(state["model"], other["model"])
    for part in _SEGMENTING_PARTS:
        if state.get(part) != other.get(part):
            yield f"their {part.replace('_', '-')}s differ", state.get(part), other.get(part)
    added, other_added = ({t["content"]: t for t in s.get("added_tokens", [])} for s in (state, other))
    for content in sorted(added.keys() | other_added.keys()):
        flags, other_flags = (
            {f: a[content][f] for f in _ADDED_TOKEN_FLAGS} if content in a else None for a in (added, other_added)
        )
        if flags != other_flags:
            yield f"the added token {content!r} is found differently", flags, other_flags
    backends = [_whole_text_backend(s) for s in (state, other)]
    for text in texts:
        ids, other_ids = (b.encode(text, add_special_tokens=False).ids for b in backends)
        if ids != other_ids:
            yield f"the text {text[:60]!r} gets other ids", ids[:8], other_ids[:8]


def _vocabulary_differences(ids: Mapping[str, int], others: Mapping[str, int]) -> Iterator[_Difference]:
    if ids != others:
        new = sorted(others.keys() - ids.keys(), key=others.__getitem__)
        for token in [*sorted(ids, key=ids.__getitem__), *new]:
            if ids.get(token) != others.get(token):
                yield f"the token {token!r} has another id", ids.get(token, "none"), others.get(token, "none")


def _model_differences(model: _State, other: _State) -> Iterator[_Difference]:
    for key in sorted(model.keys() | other.keys()):
        first, second = model.get(key), other.get(key)
        if first == second or (key == "vocab" and isinstance(first, dict)):  # get_vocab has compared the ids
            continue
        if isinstance(first, list) and isinstance(second, list) and key in ("vocab", "merges"):
            for number, (a, b) in enumerate(zip(first, second, strict=False)):
                if a != b:  # in a Unigram vocabulary [token, log probability], in the order of ids
                    yield ("the Unigram score of a token" if key == "vocab" else f"merge {number}") + " differs", a, b
            yield f"they have different numbers of {key}", len(first), len(second)
        elif key not in ("dropout", "ignore_merges") or first or second:
            yield f"the setting {key!r} of their models differs", str(first)[:80], str(second)[:80]
