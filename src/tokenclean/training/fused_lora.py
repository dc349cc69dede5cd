"""A linear layer with its LoRAs as one function of autograd: y = x Wᵀ + b + Σ s · dropout(x) Aᵀ Bᵀ.

PEFT computes each term as a tensor of its own, then scales and adds them. Those tensors are as large as y, and on a CPU
they are bound by memory bandwidth. Here the LoRAs' products are added in place, forward and backward; only the dropped
input and its product with A are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from tokenclean.models.frozen_linear import FrozenLayer

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

Lora = tuple[torch.Tensor, torch.Tensor, float]
"""A (r, K), B (N, r) and the scale s."""


def join_lora_products(model: torch.nn.Module) -> int:
    """Let every frozen linear layer of ``model`` that has plain LoRAs compute as one function; how many do.

    To be called once the layers are final. At most one LoRA of a layer may be trained, the last active one; the others
    are those of earlier rounds, without dropout. Any other layer, a merged or disabled one, and other dtypes than
    float32 are computed by PEFT.
    """
    from peft.tuners.lora import Linear

    joined = 0
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            vars(layer)["forward"] = _forward_of(layer, layer.forward)
            joined += 1
    return joined


def _active_names(layer: Linear) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _is_plain(layer: Linear) -> bool:
    base, names = layer.base_layer, _active_names(layer)
    is_known = type(base) is torch.nn.Linear or isinstance(base, FrozenLayer)
    if not is_known or not names or any(p.requires_grad for p in base.parameters()):
        return False
    return not any(name in layer.lora_variant or layer.lora_bias[name] for name in names) and not any(
        layer.lora_A[name].weight.requires_grad
        or layer.lora_B[name].weight.requires_grad
        or getattr(layer.lora_dropout[name], "p", 0.0)
        for name in names[:-1]
    )


def _forward_of(layer: Linear, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    *earlier, last = _active_names(layer)
    frozen = [partial(_lora, layer, name) for name in earlier]

    def forward(x: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        a, b, scale = _lora(layer, last)
        if arguments or options or layer.disable_adapters or layer.merged or {x.dtype, a.dtype} != {torch.float32}:
            return plain(x, *arguments, **options)
        dropped = layer.lora_dropout[last](x)
        return _Product.apply(x, None if dropped is x else dropped, a, b, scale, layer.base_layer, frozen)

    return forward


def _lora(layer: Any, name: str) -> Lora:
    """To be read whenever it is needed: sharding swaps a layer's weights before and after it runs."""
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


class _Product(torch.autograd.Function):
    """``x``: (…, K) float32; ``dropped``: x after dropout, None where nothing is dropped. Gives (…, N)."""

    scale: float
    base: torch.nn.Linear | FrozenLayer
    earlier: Sequence[Callable[[], Lora]]
    is_dropped: bool

    @staticmethod
    def forward(
        ctx: _Product,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        base: torch.nn.Linear | FrozenLayer,
        earlier: Sequence[Callable[[], Lora]],
    ) -> torch.Tensor:
        ctx.scale, ctx.base, ctx.earlier, ctx.is_dropped = scale, base, earlier, dropped is not None
        product = base.linear(x) if isinstance(base, FrozenLayer) else linear(x, base.weight, base.bias)
        flat, rows = product.view(-1, product.shape[-1]), x.reshape(-1, x.shape[-1])
        for lora in earlier:
            a_before, b_before, scale_before = lora()
            flat.addmm_(rows @ a_before.T, b_before.T, alpha=scale_before)
        read = rows if dropped is None else dropped.reshape(rows.shape)
        inner = read @ a.T
        flat.addmm_(inner, b.T, alpha=scale)
        ctx.save_for_backward(read, inner, a, b)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        read, inner, a, b = ctx.saved_tensors
        needs_x, needs_dropped, needs_a, needs_b = ctx.needs_input_grad[:4]
        gradient = grad_outputs[0]
        shape = *gradient.shape[:-1], a.shape[1]
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_inner = (rows @ b).mul_(ctx.scale)
        to_a = to_inner.T @ read if needs_a else None
        to_b = (rows.T @ inner).mul_(ctx.scale) if needs_b else None
        to_dropped = (to_inner @ a).view(shape) if needs_dropped else None
        to_x = None
        if needs_x:
            base = ctx.base
            product = base.input_gradient(rows) if isinstance(base, FrozenLayer) else rows @ base.weight
            for lora in ctx.earlier:
                a_before, b_before, scale_before = lora()
                product.addmm_(rows @ b_before, a_before, alpha=scale_before)
            if not ctx.is_dropped:
                product.addmm_(to_inner, a)
            to_x = product.view(shape)
        return to_x, to_dropped, to_a, to_b, None, None, None
