"""Block-diagonal causal attention: each conversation of a pack attends to itself alone.

Registered with transformers' attention interface and switched on for one forward pass (and its backward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenclean.models.attention.backend_choice import (
    BUCKETS,
    OWN_KERNEL,
    AttentionCall,
    float32_products,
    select_kernel,
)
from tokenclean.models.attention.features import Features, read_features, repeat_key_heads
from tokenclean.models.attention.length_buckets import plan_buckets
from tokenclean.models.attention.varlen import varlen_attention
from tokenclean.models.kernels import cpu as cpu_kernels

NAME = "tokenclean_segments"

_PADDING = {"cpu": 0.0}
"""Share of a bucket that may be padding, by type of device: on a CPU padding costs more than the calls it saves."""

_PADDING_ELSEWHERE = 1 / 8

_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class _Pack:
    lengths: tuple[int, ...] = ()
    allow_bf16: bool = False


_pack = _Pack()


@contextmanager
def segments(model: PreTrainedModel, lengths: Sequence[int], allow_bf16: bool = False) -> Iterator[None]:
    """Within the block the model's attention treats its flat input of ``sum(lengths)`` tokens as these segments.

    ``allow_bf16``: float32 queries, keys and values may be rounded to bf16 for kernels that gain from it.
    """
    global _pack
    config = model.config
    previous, previous_pack = config._attn_implementation, _pack
    _pack = _Pack(tuple(int(n) for n in lengths if n), allow_bf16)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = previous
        _pack = previous_pack


def current_segments(model: PreTrainedModel) -> AbstractContextManager[None]:
    """The current ``segments``, to be entered again where a layer is recomputed; no context where there is none."""
    return segments(model, _pack.lengths, _pack.allow_bf16) if _pack.lengths else nullcontext()


@torch.compiler.disable
def segment_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of transformers' interface over the current segments.

    ``query``: (1, heads, T, d); ``key``/``value``: (1, key heads, T, d), T the sum of the segment lengths. ``options``:
    see ``Features``. Returns (1, T, heads, d). On a CPU, products of float32 tensors are float32 unless ``segments``
    allows bf16, regardless of ``torch.set_float32_matmul_precision``. Never compiled: torch.compile calls it.
    Raises NotImplementedError for a feature it does not support, RuntimeError for a second derivative.
    """
    features, pack = read_features("segment attention", attention_mask, options), _pack
    if query.shape[0] != 1 or query.shape[2] != sum(pack.lengths):
        raise NotImplementedError("segment attention needs one flat sequence made of the current segments")
    if features.window is not None and features.window >= max(pack.lengths):
        features = features._replace(window=None)
    call = AttentionCall(
        query.device,
        query.dtype,
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        has_softcap=features.softcap is not None,
        has_window=features.window is not None,
        has_dropout=features.dropout > 0,
        has_gradient=torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)),
        allow_bf16=pack.allow_bf16,
    )
    kernel = select_kernel(call)
    by_buckets = partial(_in_buckets, lengths=pack.lengths, features=features)
    by_own_kernel = partial(
        cpu_kernels.segment_attention, lengths=pack.lengths, features=features, allow_bf16=pack.allow_bf16
    )
    if kernel not in (OWN_KERNEL, BUCKETS):
        output = varlen_attention(kernel, query, key, value, pack.lengths, features)
    elif query.device.type not in ("cpu", "meta"):  # on meta a plan counts what a CPU would keep
        output = by_buckets(query, key, value)
    elif call.has_gradient:
        is_quick = select_kernel(replace(call, has_gradient=False)) == OWN_KERNEL
        output = _InFloat32.apply(by_own_kernel if is_quick else by_buckets, by_buckets, query, key, value)
    elif kernel == OWN_KERNEL:
        output = by_own_kernel(query, key, value)
    else:
        with float32_products():
            output = by_buckets(query, key, value)
    return output.contiguous(), None


def _in_buckets(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], features: Features) -> Tensor:
    """Attention of the segments, (1, T, heads, d), one call a bucket."""
    if query.device.type != "cpu" and query.shape[1] != key.shape[1]:  # CUDA's float32 kernel wants equally many heads
        key, value = repeat_key_heads(query, key, value)
    buckets = plan_buckets(lengths, _PADDING.get(query.device.type, _PADDING_ELSEWHERE))
    sizes = [bucket.tokens for bucket in buckets]
    # Split and not sliced: the gradient of a slice is as large as the whole.
    pieces = zip(buckets, *(t.split(sizes, dim=2) for t in (query, key, value)), strict=True)
    outputs = []
    for bucket, *parts in pieces:
        q, k, v = (bucket.pad(part) for part in parts)
        outputs.append(bucket.unpad(_attend(q, k, v, features)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, features: Features) -> Tensor:
    """Causal attention of each row to itself: (rows, heads, L, d) and (rows, key heads, L, d) to (rows, heads, L, d).

    With a soft cap or a window it runs by blocks of queries, each with the keys it sees: memory is O(L · window).
    """
    length, window = q.shape[2], features.window
    if features.softcap is None and (window is None or window >= length):
        return _sdpa(q, k, v, None, features)
    reach = length if window is None else window
    outputs, stop = [], 0
    for block in q.split(_BLOCK_QUERIES, dim=2):
        start, stop = stop, stop + block.shape[2]
        first = max(0, start + 1 - reach)
        distance = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, stop, device=q.device)
        visible = (distance >= 0) & (distance < reach)
        outputs.append(attend_visible(block, k[:, :, first:stop], v[:, :, first:stop], visible, features))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def attend_visible(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, features: Features) -> Tensor:
    """Attention to the visible keys: (rows, heads, Q, d), (rows, key heads, K, d) and bool (Q, K); no window here."""
    if features.softcap is None:
        return _sdpa(q, k, v, visible, features)
    groups = q.shape[1] // k.shape[1]
    folded = q.unflatten(1, (-1, groups)).flatten(2, 3)  # (rows, key heads, groups · queries, d): no key is copied
    logits = folded @ k.transpose(2, 3) * features.scale(q)
    logits = torch.tanh(logits / features.softcap) * features.softcap
    weights = logits.masked_fill(~visible.repeat(groups, 1), float("-inf")).softmax(dim=-1)
    return (drop(weights, features.dropout) @ v).unflatten(2, (groups, -1)).flatten(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, features: Features) -> Tensor:
    """torch's attention; causal where no ``visible`` is given."""
    scaling, dropout, is_grouped = features.scaling, features.dropout, q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=visible is None, scale=scaling, dropout_p=dropout, enable_gqa=is_grouped
    )


class _InFloat32(torch.autograd.Function):
    """Attention with float32 products, in its backward pass too, under any precision set there.

    ``attend`` is differentiable; ``compute`` gives the same result and may be faster. The backward pass computes
    attention again, so only queries, keys and values are kept for it.
    """

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], attend: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.attend, ctx.random = attend, torch.get_rng_state()  # so that dropout draws the same mask again
        with float32_products():
            return compute(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("packed attention has no second derivative")
        needed = ctx.needs_input_grad[2:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), float32_products(), torch.random.fork_rng(devices=()):
            torch.set_rng_state(ctx.random)
            output = ctx.attend(*leaves)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            gradients = iter(torch.autograd.grad(output, wanted, grad_outputs))
        return None, None, *(next(gradients) if leaf.requires_grad else None for leaf in leaves)


ALL_ATTENTION_FUNCTIONS.register(NAME, segment_attention)
