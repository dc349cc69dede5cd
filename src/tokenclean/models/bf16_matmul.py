"""Matrix products of tensors rounded to bf16, with sums and outputs in float32 where a kernel offers that."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import linear


def matmul(x: torch.Tensor, weight_KN: torch.Tensor) -> torch.Tensor:
    """``x`` (…, K) of any float dtype times a bf16 weight: (…, N) of the dtype of ``x``.

    Without gradient, on a GPU with such kernels, the output is never rounded; elsewhere it is rounded to bf16 first.
    """
    half = x.to(weight_KN.dtype)
    is_plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != torch.float32
    if is_plain or not gives_float32(x.device):
        return (linear(half, weight_KN.T) if weight_KN.T.is_contiguous() else half @ weight_KN).to(x.dtype)
    rows = half.reshape(-1, half.shape[-1])
    return torch.mm(rows, weight_KN, out_dtype=torch.float32).view(*x.shape[:-1], -1)


@lru_cache
def gives_float32(device: torch.device) -> bool:
    """Whether the device multiplies bf16 into float32, found out by trying once."""
    if device.type != "cuda":
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    try:
        with torch.no_grad():
            found = torch.mm(a, b, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # a GPU without it
        return False
    return found.dtype == torch.float32 and bool(torch.allclose(found, a.float() @ b.float(), atol=1e-2, rtol=1e-3))
