"""Precision policies: where float32 may give way to bf16, and where never.

=========  ============================  ==========================================================
policy     inside matrix products        elsewhere
=========  ============================  ==========================================================
``exact``  float32                       float32
``safe``   bf16, accumulated in float32  float32 weights and activations
``fast``   bf16 weights and outputs      float32 residual, norms, RoPE, attention, logits, log-sum-exp
=========  ============================  ==========================================================

``safe`` permits bf16 inside products (``medium``); torch uses it where the processor gains from it, so its error
differs between machines. Adapters stay unmerged under every policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch.nn.functional import linear

Precision = Literal["exact", "safe", "fast"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@contextmanager
def precision_policy(body: torch.nn.Module, precision: str) -> Iterator[None]:
    """Run the block under a policy. ``body`` is the model below its output layer; the head is never rounded.

    ``fast`` computes the body's linear layers in bf16. A weight's bf16 copy is cached within the block until the
    weight changes; a trained weight is rounded anew each time and gets its gradient in float32. No copy outlives its
    block: fused optimizers and ``.data`` (PEFT's merging) change a weight without a trace. Raises ValueError for an
    unknown policy.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "exact" else "medium")
    layers = [m for m in body.modules() if type(m) is torch.nn.Linear] if precision == "fast" else []
    replaced = [vars(layer).get("forward") for layer in layers]  # an instance's own forward, as of accelerate's hooks
    for layer in layers:
        vars(layer)["forward"] = _bf16_forward(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward
        torch.set_float32_matmul_precision(before)


def _bf16_forward(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    copy: torch.Tensor | None = None
    copied_state = (0, 0)

    def weight_in_bf16() -> torch.Tensor:
        nonlocal copy, copied_state
        weight = layer.weight
        if weight.requires_grad and torch.is_grad_enabled():
            return weight.to(torch.bfloat16)
        state = (weight._version, weight.data_ptr())
        if copy is None or state != copied_state:
            copy, copied_state = weight.detach().to(torch.bfloat16), state
        return copy

    def forward(x: torch.Tensor) -> torch.Tensor:
        product = linear(x.to(torch.bfloat16), weight_in_bf16()).to(x.dtype)
        return product if layer.bias is None else product + layer.bias

    return forward
