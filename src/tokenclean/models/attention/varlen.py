"""GPU attention kernels that take a flat pack of conversations without padding."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad

from tokenclean.models.attention.features import Features
from tokenclean.models.attention.length_buckets import starts_of

logger = logging.getLogger(__name__)

FLASH_ATTN = "flash_attn varlen"
TORCH_VARLEN = "torch varlen"
FLEX = "flex"

FLEX_BLOCK = 128
"""Tokens in a side of FlexAttention's blocks."""

_FLEX_RECOMPILES = 64
"""Compiled forms of FlexAttention that are kept: two for each combination of dtype, head size, features and gradient.

Beyond the limit, by default 8 in a process, torch runs it uncompiled, which traces it again at every call.
"""


@lru_cache
def installed_kernels(device: torch.device) -> frozenset[str]:
    """The kernels of this module that the device and the installed packages offer."""
    if device.type != "cuda":
        return frozenset()
    found = set()
    if torch.cuda.get_device_capability(device) >= (8, 0):
        found.add(TORCH_VARLEN)
        if _flash_attn_function() is not None:
            found.add(FLASH_ATTN)
    if importlib.util.find_spec("triton") is not None:
        found.add(FLEX)
    return frozenset(found)


def varlen_attention(
    kernel: str, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], features: Features
) -> Tensor:
    """Causal attention of each segment to itself by a kernel of this module.

    (1, heads, T, d), (1, key heads, T, d) twice, to (1, T, heads, d) in the query's dtype. The flash kernels round
    float32 to bf16 first. Differentiable. Raises NotImplementedError for a feature that the kernel does not support.
    """
    if kernel == FLEX:
        return _flex(query, key, value, lengths, features)
    attend = {FLASH_ATTN: _flash_attn, TORCH_VARLEN: _torch_varlen}[kernel]
    flat = [t[0].transpose(0, 1) for t in (query, key, value)]
    half = [t.to(torch.bfloat16 if t.dtype == torch.float32 else t.dtype).contiguous() for t in flat]
    output = attend(half, _bounds(lengths, query.device), max(lengths), features.scale(query), features)
    return output[None].to(query.dtype)


def first_visible(lengths: Sequence[int], window: int | None) -> Tensor:
    """The first key that each flat token sees, int32 (T,); the last one it sees is itself."""
    starts = torch.tensor(starts_of(lengths), dtype=torch.int32)
    first = starts.repeat_interleave(torch.tensor(lengths))
    if window is None:
        return first
    return first.maximum(torch.arange(len(first), dtype=torch.int32) + 1 - window)


def visible_blocks(first: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Which square blocks of the attention matrix are visible in part, and which as a whole: bool (n, n) each.

    ``first``: from ``first_visible``, rising. Rows are blocks of queries, columns blocks of keys. A query sees one
    range of keys, so a block's first query determines where its visible blocks begin, its last query where the whole
    ones do.
    """
    count = -(-len(first) // block)
    index = torch.arange(count)
    last_query = (index * block + block - 1).clamp(max=len(first) - 1)
    begin = first.long()[index * block] // block
    whole = -(-first.long()[last_query] // block)
    is_before = index[None, :] < index[:, None]
    is_whole = is_before & (index[None, :] >= whole[:, None])
    is_visible = (index[None, :] >= begin[:, None]) & (index[None, :] <= index[:, None])
    return is_visible & ~is_whole, is_whole


@lru_cache(maxsize=1)
def _flash_attn_function() -> Callable[..., Any] | None:
    """``flash_attn_varlen_func`` of flash_attn 2.6 or later (the first with a soft cap), or None."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        function = vars(importlib.import_module("flash_attn")).get("flash_attn_varlen_func")
    except (ImportError, OSError) as error:  # built for another torch
        logger.warning("flash_attn is installed and cannot be imported: %s", " ".join(str(error).split())[:200])
        return None
    return function if function is not None and "softcap" in inspect.signature(function).parameters else None


@lru_cache(maxsize=1)
def _flex_function() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flash_attn(tensors: list[Tensor], bounds: Tensor, longest: int, scale: float, features: Features) -> Tensor:
    function = _flash_attn_function()
    if function is None:
        raise NotImplementedError("flash_attn 2.6 or later is not installed")
    window = features.window
    return function(
        *tensors,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=features.dropout,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),  # keys before the query's own
        softcap=features.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _torch_varlen(tensors: list[Tensor], bounds: Tensor, longest: int, scale: float, features: Features) -> Tensor:
    if features.dropout or features.softcap is not None:
        raise NotImplementedError("torch's varlen attention has neither dropout nor a soft cap")
    query, key, value = tensors
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if (w := features.window) is None else w - 1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    else:  # torch 2.11 asks for equally many heads
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    output = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    assert isinstance(output, Tensor)  # a tuple only where return_aux asks for more
    return output


def _flex(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], features: Features) -> Tensor:
    from torch._dynamo import config as compile_config  # takes seconds to import

    if features.dropout:
        raise NotImplementedError("FlexAttention has no dropout")
    cap = torch.tensor(features.softcap or 0.0, device=query.device)  # a plain number would be compiled in

    def cap_logit(logit: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(logit / cap)

    tokens = query.shape[2]
    filling = flex_tokens(tokens) - tokens
    padded = [pad(t, (0, 0, 0, filling)).contiguous() for t in (query, key, value)]  # other strides compile again
    with compile_config.patch(recompile_limit=_FLEX_RECOMPILES):
        output = _flex_function()(
            *padded,
            score_mod=None if features.softcap is None else cap_logit,
            block_mask=_block_mask((*lengths, filling) if filling else lengths, features.window, query.device),
            scale=features.scale(query),
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options={"FORCE_USE_FLEX_ATTENTION": True},  # never its decoding kernel, whose products round
        )
    return output[:, :, :tokens].transpose(1, 2)


def flex_tokens(tokens: int) -> int:
    """How many tokens a pack has for FlexAttention: whole blocks, at least two.

    The code that torch compiles for the second number serves all others. Packs that end within a block, and those of a
    single block, would be compiled again, the latter into a kernel for decoding.
    """
    return max(2, -(-tokens // FLEX_BLOCK)) * FLEX_BLOCK


@lru_cache(maxsize=8)
def _block_mask(lengths: tuple[int, ...], window: int | None, device: torch.device) -> Any:
    """FlexAttention's mask, from the lengths alone: comparing all pairs of tokens would take T² memory."""
    from torch.nn.attention.flex_attention import BlockMask

    first = first_visible(lengths, window)
    ordered = []
    for is_wanted in visible_blocks(first, FLEX_BLOCK):
        counts, indices = is_wanted.sum(dim=1), is_wanted.int().argsort(dim=1, descending=True, stable=True)
        ordered += [counts[None, None].int().to(device), indices[None, None].int().to(device)]
    first = first.to(device)

    def is_visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[query])

    return BlockMask.from_kv_blocks(
        *ordered, BLOCK_SIZE=FLEX_BLOCK, mask_mod=is_visible, seq_lengths=(len(first), len(first))
    )


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each segment begins, and the end of the last, int32 (segments + 1,)."""
    return torch.tensor([*starts_of(lengths), sum(lengths)], dtype=torch.int32, device=device)
