"""Which kernel computes the attention of a pack.

A kernel of ``varlen`` is used only after a trial: on small random tensors it must agree with the definition of
attention, computed in float32. One that fails is not used, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokenclean.models.attention.features import Features, repeat_key_heads
from tokenclean.models.attention.varlen import (
    FLASH_ATTN,
    FLEX,
    TORCH_VARLEN,
    first_visible,
    installed_kernels,
    varlen_attention,
)
from tokenclean.models.kernels.cpu import missing_kernels

logger = logging.getLogger(__name__)

# These words are recorded with the losses, so they keep the names that existing runs have.
BUCKETS = "rectangles, SDPA"
"""torch's SDPA over ``length_buckets``."""

OWN_KERNEL = "block products"
"""Our own CPU kernel (``kernels.cpu.segment_attention``), without gradient."""

_TRIAL_LENGTHS: tuple[tuple[int, ...], ...] = ((150, 1, 40, 129), (61, 60, 90), (24, 9, 40))
_TRIAL_WINDOW, _TRIAL_SOFTCAP = 48, 4.0
_TRIAL_TOLERANCE = 0.05  # values are about 1: bf16 errs by 0.01, a kernel that ignores a feature by far more
_TRIAL_TOLERANCE_FLOAT32 = 1e-4  # float32 errs by 1e-6, products rounded to TF32 by 1e-3


@dataclass(frozen=True)
class AttentionCall:
    """What the choice of a kernel depends on.

    ``dtype``: of queries, keys and values; ``head_dim``: of queries and keys; ``value_dim``: of values. ``has_window``:
    a layer's window is shorter than the longest segment. ``allow_bf16``: float32 tensors may be rounded to bf16.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int = 64
    value_dim: int = 64
    has_softcap: bool = False
    has_window: bool = False
    has_dropout: bool = False
    has_gradient: bool = False
    allow_bf16: bool = False


def choose_kernel(call: AttentionCall, usable: Collection[str]) -> str:
    """The first of the usable kernels that supports the call.

    The flash kernels take fp16 and bf16 alone, torch's without soft cap and dropout. FlexAttention takes any dtype and
    is chosen where SDPA has no kernel of its own, for a soft cap or a window. Our own kernel is for CPUs, float32 and
    passes without gradient. The buckets support everything.
    """
    is_half = call.dtype in (torch.bfloat16, torch.float16) or (call.allow_bf16 and call.dtype == torch.float32)
    fits_flash = is_half and call.head_dim == call.value_dim <= 256 and call.head_dim % 8 == 0
    if FLASH_ATTN in usable and fits_flash:
        return FLASH_ATTN
    if TORCH_VARLEN in usable and fits_flash and not call.has_softcap and not call.has_dropout:
        return TORCH_VARLEN
    has_no_sdpa_kernel = call.has_softcap or call.has_window
    if FLEX in usable and has_no_sdpa_kernel and not call.has_dropout and min(call.head_dim, call.value_dim) >= 16:
        return FLEX
    is_plain = call.dtype == torch.float32 and call.head_dim == call.value_dim
    if OWN_KERNEL in usable and is_plain and not call.has_gradient and not call.has_dropout:
        return OWN_KERNEL
    return BUCKETS


def select_kernel(call: AttentionCall) -> str:
    """``choose_kernel`` among those installed that pass their trial, which runs at the first call of its kind."""
    usable = set(installed_kernels(call.device))
    if call.device.type == "cpu" and missing_kernels() is None:  # which checks them
        usable.add(OWN_KERNEL)
    while (kernel := choose_kernel(call, usable)) not in (BUCKETS, OWN_KERNEL):
        if passes_trial(kernel, call):
            return kernel
        usable.discard(kernel)
    return kernel


@lru_cache
def passes_trial(kernel: str, call: AttentionCall) -> bool:
    """Whether the kernel gives softmax(QKᵀ) V, and its gradient where one is needed, on small random tensors.

    Tries packs of several sizes: a compiled kernel is compiled again for the second, and a short pack may get another
    kernel.
    """
    try:
        problem = next((found for lengths in _TRIAL_LENGTHS if (found := _problem(kernel, call, lengths))), None)
    except Exception as error:  # compiled code of others can fail in any way, and there are always the buckets
        problem = f"{type(error).__name__}: " + " ".join(str(error).split())[:300]
    if problem:
        logger.warning("%s is not used for attention on %s (%s)", kernel, call.device, problem)
    return not problem


def _problem(kernel: str, call: AttentionCall, lengths: tuple[int, ...]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, call.head_dim), (2, call.head_dim), (2, call.value_dim))
    drawn = [torch.randn(1, sum(lengths), *shape, generator=generator).transpose(1, 2) for shape in shapes]
    tensors = [t.to(call.device, call.dtype).requires_grad_(call.has_gradient) for t in drawn]
    exact = [t.detach().float().requires_grad_(call.has_gradient) for t in tensors]
    features = Features(
        softcap=_TRIAL_SOFTCAP if call.has_softcap else None, window=_TRIAL_WINDOW if call.has_window else None
    )
    # The flash kernels are given bf16; FlexAttention is given float32, and under exact it must not round.
    is_float32 = kernel == FLEX and call.dtype == torch.float32
    tolerance = _TRIAL_TOLERANCE_FLOAT32 if is_float32 else _TRIAL_TOLERANCE
    with torch.set_grad_enabled(call.has_gradient), float32_products():
        query, key, value = tensors
        found = varlen_attention(kernel, query, key, value, lengths, features)
        query, key, value = exact
        expected = attention_by_definition(query, key, value, lengths, features)
        if not _agree(found, expected, tolerance):
            return "it does not give the attention of the definition"
        if call.has_gradient:
            pull = torch.randn(found.shape, generator=generator).to(found)
            gradients = torch.autograd.grad(found, tensors, pull)
            wanted = torch.autograd.grad(expected, exact, pull.float())
            if not all(_agree(g, w, tolerance) for g, w in zip(gradients, wanted, strict=True)):
                return "it does not give the gradient of the definition"
    return None


def _agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    error = (found.float() - expected).abs().max()
    return bool(error < tolerance * (1 + expected.abs().max()))


@contextmanager
def float32_products() -> Iterator[None]:
    """Keep bf16 out of the block: a CPU takes up to three times as long for attention's small products in bf16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def attention_by_definition(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], features: Features
) -> Tensor:
    """Attention with all logits in memory, (1, T, heads, d), without dropout: what the kernels are compared with."""
    key, value = repeat_key_heads(query, key, value)
    logits = query @ key.transpose(2, 3) * features.scale(query)
    if features.softcap is not None:
        logits = features.softcap * torch.tanh(logits / features.softcap)
    places = torch.arange(query.shape[2], device=query.device)
    first = first_visible(lengths, features.window).to(query.device)
    is_visible = (places[None, :] <= places[:, None]) & (places[None, :] >= first[:, None])
    return (logits.masked_fill(~is_visible, float("-inf")).softmax(dim=-1) @ value).transpose(1, 2)
