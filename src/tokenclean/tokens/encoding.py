"""Token ids of texts with the exact characters that each token stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from tokenclean.errors import PoolError
from tokenclean.tokens.rendered_text import Rendered, leading_blanks

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def exact_offset_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's Rust backend whose offsets include leading spaces, without truncation or padding.

    Byte-level tokenizers report " word" by the offsets of "word" (``trim_offsets``): a token across a boundary at
    that space would look as if it were inside.
    """
    return _untrimmed_backend(backend_of(tokenizer, "the token labels need").to_str())


def backend_of(tokenizer: PreTrainedTokenizerBase, needed: str) -> Tokenizer:
    """The tokenizer's Rust backend. Raises PoolError for a "slow" tokenizer; ``needed``: who needs its offsets."""
    if not tokenizer.is_fast:
        raise PoolError(
            f"{type(tokenizer).__name__} reports no character offsets, which {needed}; load the model's fast tokenizer "
            "(tokenizer.json)"
        )
    return fast_backend(tokenizer)


def fast_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The Rust backend of a fast tokenizer; transformers declares the attribute as almost anything."""
    from tokenizers import Tokenizer

    backend: object = tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    return backend


@lru_cache(maxsize=1)  # a backend that is dropped leaks some memory, which adds up over shards
def _untrimmed_backend(serialized: str) -> Tokenizer:
    from tokenizers import Tokenizer

    state = json.loads(serialized)
    _untrim(state["post_processor"] or {})
    backend = Tokenizer.from_str(json.dumps(state))
    backend.no_truncation()
    backend.no_padding()
    return backend


class _PostProcessor(TypedDict, total=False):
    """Of a ``tokenizer.json``."""

    trim_offsets: bool
    processors: list[_PostProcessor]


def _untrim(processor: _PostProcessor) -> None:
    """Switch ``trim_offsets`` off in a post-processor, and in those that it consists of."""
    if "trim_offsets" in processor:
        processor["trim_offsets"] = False
    for inner in processor.get("processors", []):
        _untrim(inner)


def encode(backend: Tokenizer, rendered: list[Rendered]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids (int64, L) and character spans (int32, L×2) of each text.

    What the tokenizer itself puts in front (BOS) stays where ``adds_bos``; what it appends is left out, since the
    text ends with its own EOS. An added token that swallows the whitespace beside it (Phi-3's ``<|end|>``) spans its
    own characters only, or the whitespace would carry it across the target's boundary.
    """
    swallowing = [i for i, t in backend.get_added_tokens_decoder().items() if t.lstrip or t.rstrip]
    encodings = backend.encode_batch([r.text for r in rendered], add_special_tokens=True)
    for row, encoding in zip(rendered, encodings, strict=True):
        token_ids = np.array(encoding.ids, dtype=np.int64)
        spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        for position in np.flatnonzero(np.isin(token_ids, swallowing)):
            start, end = spans[position]
            covered = row.text[start:end]
            spans[position] = start + leading_blanks(covered), start + len(covered.rstrip())
        added = np.array(encoding.special_tokens_mask, dtype=bool) & (spans[:, 0] == spans[:, 1])
        if len(added) and not added.all():
            first = int(np.argmin(added))
            last = len(added) - int(np.argmin(added[::-1]))
            kept = slice(0 if row.adds_bos else first, last)
            token_ids, spans = token_ids[kept], spans[kept]
        yield token_ids, spans
