"""Block-diagonal causal attention: each conversation of a pack attends to itself alone.

Registered with transformers' attention interface and switched on for the span of one forward (and its backward).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "tokenclean_segments"

_segment_lengths: list[int] = []


@contextmanager
def segments(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[None]:
    """Within the block the model's attention treats its flat input of ``sum(lengths)`` tokens as these segments."""
    config = model.config
    previous, previous_lengths = config._attn_implementation, list(_segment_lengths)
    _segment_lengths[:] = [int(n) for n in lengths]
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = previous
        _segment_lengths[:] = previous_lengths


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface over the current segments.

    ``query``: (1, heads, T, d); ``key``/``value``: (1, key heads, T, d), T the sum of the segment lengths.
    ``softcap``: logits become softcap·tanh(logits / softcap) (Gemma 2). ``sliding_window``: a query sees the last
    that many keys. Returns (1, T, heads, d). Raises NotImplementedError for a feature it does not know.
    """
    known_to_be_harmless = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}
    unknown = {k for k, v in unused.items() if v is not None and v is not False} - known_to_be_harmless
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"segment attention does not know {sorted(unknown) or 'this attention mask'}")
    if query.shape[0] != 1 or query.shape[2] != sum(_segment_lengths):
        raise NotImplementedError("segment attention needs one flat sequence made of the current segments")
    if query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    outputs, start = [], 0
    for length in _segment_lengths:
        q, k, v = (t[:, :, start : start + length] for t in (query, key, value))
        outputs.append(_attend(q, k, v, scaling, dropout, softcap, sliding_window))
        start += length
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    length = q.shape[2]
    is_windowed = window is not None and window < length
    if softcap is None and not is_windowed:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
    visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if is_windowed:
        visible = visible & visible.new_ones(length, length).triu(1 - int(window or 0))
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scaling, dropout_p=dropout)
    logits = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    logits = torch.tanh(logits / softcap) * softcap
    weights = logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.nn.functional.dropout(weights, dropout) @ v


ALL_ATTENTION_FUNCTIONS.register(NAME, segment_attention)
