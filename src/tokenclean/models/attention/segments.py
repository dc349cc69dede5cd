"""Block-diagonal causal attention: each conversation of a pack attends to itself alone.

Registered with transformers' attention interface and switched on for the span of one forward (and its backward).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenclean.models.attention.backend_choice import BLOCK_PRODUCTS, RECTANGLES, AttentionCall, select_kernel
from tokenclean.models.attention.length_buckets import plan_rectangles
from tokenclean.models.attention.varlen import varlen_attention
from tokenclean.models.kernels import cpu as cpu_kernels

NAME = "tokenclean_segments"

_PADDING = {"cpu": 0.0}
"""Share of a rectangle that may be filling, by type of device: on a CPU filling costs more than the calls it saves."""

_PADDING_ELSEWHERE = 1 / 8

_BLOCK_QUERIES = 256

_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


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
    """The block of ``segments`` that stands now, to be entered again where a layer is computed anew; else nothing."""
    return segments(model, _pack.lengths, _pack.allow_bf16) if _pack.lengths else nullcontext()


def attention_kernel(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int = 64,
    has_softcap: bool = False,
    has_window: bool = False,
    has_dropout: bool = False,
    has_gradient: bool = False,
    allow_bf16: bool = False,
) -> str:
    """What computes such attention here, in words, to be recorded: "block products", "rectangles, SDPA",
    "flash_attn varlen", "torch varlen" or "flex".

    ``dtype``: of queries, keys and values. ``has_window``: a layer's window is shorter than the longest segment.
    ``allow_bf16`` as of ``segments``. On a GPU the first call of its kind compiles and tries the kernel.
    """
    call = AttentionCall(
        torch.device(device), dtype, head_dim, head_dim, has_softcap, has_window, has_dropout, has_gradient, allow_bf16
    )
    return select_kernel(call)


@torch.compiler.disable
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
    that many keys. Returns (1, T, heads, d). On a CPU, products of float32 tensors are float32 unless ``segments``
    allows bf16, whatever ``torch.set_float32_matmul_precision`` says. Never compiled: torch.compile calls it as it is.
    Raises NotImplementedError for a feature it does not know, RuntimeError for a second derivative.
    """
    check_known("segment attention", attention_mask, unused)
    if query.shape[0] != 1 or query.shape[2] != sum(_pack.lengths):
        raise NotImplementedError("segment attention needs one flat sequence made of the current segments")
    window = sliding_window if sliding_window is not None and sliding_window < max(_pack.lengths) else None
    call = AttentionCall(
        device=query.device,
        dtype=query.dtype,
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        has_softcap=softcap is not None,
        has_window=window is not None,
        has_dropout=dropout > 0,
        has_gradient=torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)),
        allow_bf16=_pack.allow_bf16,
    )
    kernel, pack = select_kernel(call), _pack
    if kernel not in (BLOCK_PRODUCTS, RECTANGLES):
        output = varlen_attention(
            kernel, query, key, value, pack.lengths, scaling=scaling, dropout=dropout, softcap=softcap, window=window
        )
        return output.contiguous(), None

    def in_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return cpu_kernels.segment_attention(
            q,
            k,
            v,
            list(pack.lengths),
            scale=q.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=softcap,
            window=window,
            as_bf16=pack.allow_bf16 and cpu_kernels.has_bf16_kernels(),
        )

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _in_rectangles(q, k, v, pack.lengths, scaling, dropout, softcap, window)

    if query.device.type not in ("cpu", "meta"):  # on meta a plan counts what a CPU would keep
        output = attend(query, key, value)
    elif call.has_gradient:
        is_quick = select_kernel(replace(call, has_gradient=False)) == BLOCK_PRODUCTS
        output = _InFloat32.apply(in_blocks if is_quick else attend, attend, query, key, value)
    elif kernel == BLOCK_PRODUCTS:
        output = in_blocks(query, key, value)
    else:
        with float32_products():
            output = attend(query, key, value)
    return output.contiguous(), None


def _in_rectangles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of the segments, (1, T, heads, d), one call a rectangle."""
    if query.device.type != "cpu" and query.shape[1] != key.shape[1]:  # CUDA's float32 kernel wants equally many heads
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    rectangles = plan_rectangles(lengths, _PADDING.get(query.device.type, _PADDING_ELSEWHERE))
    sizes = [rectangle.tokens for rectangle in rectangles]
    # Split and not sliced: the gradient of a slice is as large as the whole.
    pieces = zip(rectangles, *(t.split(sizes, dim=2) for t in (query, key, value)), strict=True)
    outputs = []
    for rectangle, *parts in pieces:
        q, k, v = (rectangle.stand(part) for part in parts)
        outputs.append(rectangle.lay_flat(_attend(q, k, v, scaling, dropout, softcap, window)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of each row to itself: (rows, heads, L, d) and (rows, key heads, L, d) to (rows, heads, L, d).

    With a soft cap or a window it goes by blocks of queries, each with the keys it sees: memory is O(L · window).
    """
    length = q.shape[2]
    is_windowed = window is not None and window < length
    enable_gqa = q.shape[1] != k.shape[1]
    if softcap is None and not is_windowed:
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=enable_gqa
        )
    reach = window if window is not None else length
    outputs, stop = [], 0
    for block in q.split(_BLOCK_QUERIES, dim=2):
        start, stop = stop, stop + block.shape[2]
        first = max(0, start + 1 - reach)
        keys, values = k[:, :, first:stop], v[:, :, first:stop]
        distance = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(first, stop, device=q.device)
        visible = (distance >= 0) & (distance < reach)
        if softcap is None:
            output = scaled_dot_product_attention(
                block, keys, values, attn_mask=visible, scale=scaling, dropout_p=dropout, enable_gqa=enable_gqa
            )
        else:
            output = attend_capped(block, keys, values, visible, scaling, dropout, softcap)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def check_known(name: str, attention_mask: torch.Tensor | None, unused: Mapping[str, Any]) -> None:
    """Raise NotImplementedError where a model asks its attention for what this project's does not know."""
    unknown = {k for k, v in unused.items() if v is not None and v is not False} - _HARMLESS
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"{name} does not know {sorted(unknown) or 'this attention mask'}")


def attend_capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float,
) -> torch.Tensor:
    """Attention with soft-capped logits: (rows, heads, Q, d) and (rows, key heads, K, d), ``visible`` bool (Q, K)."""
    groups = q.shape[1] // k.shape[1]
    folded = q.unflatten(1, (-1, groups)).flatten(2, 3)  # (rows, key heads, groups · queries, d): keys stay as they are
    logits = folded @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    logits = torch.tanh(logits / softcap) * softcap
    weights = logits.masked_fill(~visible.repeat(groups, 1), float("-inf")).softmax(dim=-1)
    return (drop(weights, dropout) @ v).unflatten(2, (groups, -1)).flatten(1, 2)


@contextmanager
def float32_products() -> Iterator[None]:
    """On a CPU the small products of attention take up to three times as long where bf16 is permitted in them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _InFloat32(torch.autograd.Function):
    """Attention with float32 products, and so its backward, wherever that runs.

    ``attend`` is what has a derivative; ``compute`` gives the same, maybe sooner. The backward pass computes attention
    again, so queries, keys and values are all that is kept for it, and checkpointed layers see no more.
    """

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., torch.Tensor], attend: Callable[..., torch.Tensor], *tensors: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        ctx.attend, ctx.random = attend, torch.get_rng_state()  # dropout draws the same mask again
        with float32_products():
            return compute(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
