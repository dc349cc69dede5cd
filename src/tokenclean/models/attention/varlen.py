"""Attention kernels of a GPU that take a flat pack of conversations as it is."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from tokenclean.models.attention.length_buckets import starts_of

logger = logging.getLogger(__name__)

FLASH_ATTN = "flash_attn varlen"
TORCH_VARLEN = "torch varlen"
FLEX = "flex"

FLEX_BLOCK = 128
"""Tokens in a side of FlexAttention's blocks."""


@lru_cache
def installed_kernels(device: torch.device) -> frozenset[str]:
    """The kernels of this module that the device and the installed packages offer."""
    if device.type != "cuda":
        return frozenset()
    found = set()
    if torch.cuda.get_device_capability(device) >= (8, 0):
        if _flash_attn_function() is not None:
            found.add(FLASH_ATTN)
        if _torch_varlen_function() is not None:
            found.add(TORCH_VARLEN)
    if importlib.util.find_spec("triton") is not None:
        found.add(FLEX)
    return frozenset(found)


def varlen_attention(
    kernel: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of each segment to itself by a kernel of this module.

    Shapes and features as of ``attention.segment_attention``. The flash kernels round float32 to bf16 on their way in;
    the result is of the query's dtype. Differentiable.
    """
    attend = {FLASH_ATTN: _flash_attn, TORCH_VARLEN: _torch_varlen, FLEX: _flex}[kernel]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, lengths, scale, dropout, softcap, window)


def first_visible(lengths: Sequence[int], window: int | None) -> torch.Tensor:
    """The first key that each flat token sees, int32 (T,); the last one it sees is itself."""
    starts = torch.tensor(starts_of(lengths), dtype=torch.int32)
    first = starts.repeat_interleave(torch.tensor(lengths))
    if window is None:
        return first
    return first.maximum(torch.arange(len(first), dtype=torch.int32) + 1 - window)


def visible_blocks(first: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which square blocks of the attention matrix are visible in part, and which as a whole: bool (n, n) each.

    ``first``: as of ``first_visible``, rising. Row: block of queries; column: block of keys. A query sees a whole range
    of keys, so a block's first query tells where the visible blocks begin, its last query where the whole ones do.
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
    """``flash_attn_varlen_func`` of flash_attn 2.6 or later (it knows the soft cap), or None."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        function = vars(importlib.import_module("flash_attn")).get("flash_attn_varlen_func")
    except (ImportError, OSError) as error:  # built for another torch
        logger.warning("flash_attn is installed and cannot be imported: %s", " ".join(str(error).split())[:200])
        return None
    return function if function is not None and "softcap" in inspect.signature(function).parameters else None


@lru_cache(maxsize=1)
def _torch_varlen_function() -> Callable[..., Any] | None:
    """torch's ``varlen_attn``, or None where it has no window (before torch 2.11)."""
    try:
        function = vars(importlib.import_module("torch.nn.attention.varlen"))["varlen_attn"]
    except (ImportError, KeyError):
        return None
    return function if {"scale", "window_size"} <= set(inspect.signature(function).parameters) else None


@lru_cache(maxsize=1)
def _flex_function() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flash_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    function = _flash_attn_function()
    if function is None:
        raise NotImplementedError("flash_attn 2.6 or later is not installed")
    bounds = _bounds(lengths, query.device)
    output = function(
        *(_flat_half(t) for t in (query, key, value)),
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=max(lengths),
        max_seqlen_k=max(lengths),
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),  # keys before the query's own
        softcap=softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output[None].to(query.dtype)


def _torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    if dropout or softcap is not None:
        raise NotImplementedError("torch's varlen attention knows neither dropout nor a soft cap")
    function = _torch_varlen_function()
    if function is None:
        raise NotImplementedError("this torch has no varlen attention with a window; install torch 2.11 or later")
    options: dict[str, Any] = {}
    if "enable_gqa" in inspect.signature(function).parameters:
        options["enable_gqa"] = True
    else:  # torch 2.11 asks for equally many heads
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    bounds = _bounds(lengths, query.device)
    output = function(
        *(_flat_half(t) for t in (query, key, value)),
        bounds,
        bounds,
        max(lengths),
        max(lengths),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    return output[None].to(query.dtype)


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
    dropout: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    if dropout:
        raise NotImplementedError("FlexAttention knows no dropout")
    cap = torch.tensor(softcap or 0.0, device=query.device)  # a number would be compiled in

    def cap_logit(logit: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return cap * torch.tanh(logit / cap)

    output = _flex_function()(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap_logit,
        block_mask=_block_mask(lengths, window, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        # Below 128 queries it would take a kernel for decoding, one query after many keys, with products of its own.
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    return output.transpose(1, 2)


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

    def is_visible(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (key >= first[query])

    return BlockMask.from_kv_blocks(
        *ordered, BLOCK_SIZE=FLEX_BLOCK, mask_mod=is_visible, seq_lengths=(len(first), len(first))
    )


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where segments begin and the last one ends, int32 (segments + 1,)."""
    return torch.tensor([*starts_of(lengths), sum(lengths)], dtype=torch.int32, device=device)


def _flat_half(t: torch.Tensor) -> torch.Tensor:
    """(1, heads, T, d) as (T, heads, d), float32 as bf16."""
    return t[0].transpose(0, 1).to(torch.bfloat16 if t.dtype == torch.float32 else t.dtype).contiguous()
