"""Precision policies: where float32 may give way to bf16, and where never.

=========  ==========================  =============  ==========================================
policy     inside matrix products      tensors        measured against ``exact``
=========  ==========================  =============  ==========================================
``exact``  float32                     float32        –
``safe``   bf16, float32 accumulation  float32        weights and activations stay float32
``fast``   bf16 weights and outputs    float32 else   residual, norms, RoPE, logits, log-sum-exp stay float32
=========  ==========================  =============  ==========================================

Adapters stay unmerged under every policy.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch.nn.functional import linear

Precision = Literal["exact", "safe", "fast"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

# bf16 copies of weights: layer -> (version and address of its weight when copied, the copy)
_copies: weakref.WeakKeyDictionary[torch.nn.Linear, tuple[tuple[int, int], torch.Tensor]] = weakref.WeakKeyDictionary()


@contextmanager
def precision_policy(body: torch.nn.Module, precision: str) -> Iterator[None]:
    """Run the block under a policy. ``body`` is the model below its output layer; the head is never rounded.

    ``fast`` computes the body's linear layers in bf16. A frozen weight's bf16 copy is cached until the weight
    changes; a trained weight is rounded anew each time and gets its gradient in float32. Raises ValueError for an
    unknown policy.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "exact" else "medium")
    layers = [m for m in body.modules() if type(m) is torch.nn.Linear] if precision == "fast" else []
    for layer in layers:
        layer.forward = _bf16_forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        torch.set_float32_matmul_precision(before)


def _bf16_forward(layer: torch.nn.Linear):
    def forward(x: torch.Tensor) -> torch.Tensor:
        product = linear(x.to(torch.bfloat16), _bf16_weight(layer)).to(x.dtype)
        return product if layer.bias is None else product + layer.bias

    return forward


def _bf16_weight(layer: torch.nn.Linear) -> torch.Tensor:
    weight = layer.weight
    if weight.requires_grad and torch.is_grad_enabled():
        return weight.to(torch.bfloat16)
    state = (weight._version, weight.data_ptr())
    found = _copies.get(layer)
    if found is None or found[0] != state:
        found = (state, weight.detach().to(torch.bfloat16))
        _copies[layer] = found
    return found[1]
