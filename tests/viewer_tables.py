"""Small tokenizers, and tables of made-up losses over given texts, for the viewer's tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenclean.ragged import Ragged
from tokenclean.selection import select_tokens
from tokenclean.token_table import TokenTable

WORDS = (" the", " of", " and", "ing", " water", " garden", "Question", "Answer", "\n\n", " 水", "水")


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """A token for each byte and some words, as GPT-2 spells them."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in WORDS:
        signs = "".join(piece for piece, _ in spelled.pre_tokenize_str(word))
        for end in range(2, len(signs) + 1):
            if signs[:end] not in vocabulary:
                vocabulary[signs[:end]] = len(vocabulary)
                merges.append((signs[: end - 1], signs[end - 1]))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer, backend.decoder = spelled, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("</s>", "<|user|>", "⌘end⌘")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece's way: "▁" for a space, and bytes for all that is not ASCII; decoding strips the first space."""
    signs = ["▁", *map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁t", "▁th"]
    vocabulary = {token: number for number, token in enumerate(signs)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    return np.array(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def table_of(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[tuple[str, str, str]],
    *,
    seed: int = 0,
    proportion: float | None = 0.6,
    losses: bool = True,
    strategy: str = "fixed_model",
) -> TokenTable:
    """Conversations of (source, prompt, answer) with random losses, many of them equal; ``proportion``: of the labels,
    which are left out for None."""
    rng = np.random.default_rng(seed)
    rows = [(encode(tokenizer, prompt), encode(tokenizer, answer)) for _, prompt, answer in conversations]
    ids = Ragged.from_rows([np.concatenate(row) for row in rows], np.int64)
    is_response = Ragged.from_rows([np.arange(len(p) + len(a)) >= len(p) for p, a in rows], np.bool_)

    def made(values: np.ndarray) -> Ragged:
        return ids.with_values(np.where(is_response.values, values, np.nan).astype(np.float32))

    base = made(np.round(rng.gamma(1.0, 2.0, len(ids.values)), 2))
    reference = made(np.round(rng.gamma(1.0, 1.8, len(ids.values)), 2))
    score = base - reference
    columns = {"input_ids": ids, "is_response": is_response, "score": score}
    columns |= {"base_loss": base, "reference_loss": reference} if losses else {}
    metadata = {"strategy": strategy, "models": {"base": {"name": "some/model", "revision": None}}}
    if proportion is not None:
        columns["is_kept"] = select_tokens(score, is_response, proportion=proportion)
        metadata["selection"] = {"proportion": proportion, "level": "global"}
    names = [f"{source}:{number}" for number, (source, _, _) in enumerate(conversations)]
    return TokenTable(tuple(names), tuple(source for source, _, _ in conversations), columns, metadata)


def prose(count: int, *, words: int = 30, seed: int = 0) -> list[tuple[str, str, str]]:
    """So many conversations of plain words, from the sources garden, kitchen and (every tenth) rare."""
    rng = np.random.default_rng(seed)
    stock = ("the", "water", "of", "a", "garden", "and", "stones", "keep", "cool", "roots", "drink", "moss")

    def sentence(length: int) -> str:
        return " ".join(rng.choice(stock, length)) + ".\n"

    sources = ("garden", "kitchen")
    return [
        (
            "rare" if number % 10 == 9 else sources[number % 2],
            f"Question {number}: {sentence(6)}",
            "".join(sentence(int(rng.integers(5, 15))) for _ in range(max(1, words // 10))),
        )
        for number in range(count)
    ]
