"""Layers that compute the same and keep less for the backward pass: fused LoRAs, shared dropout, gated MLPs.

A linear layer with its LoRAs is one function of autograd, y = x Wᵀ + b + Σ s · dropout(x) Aᵀ Bᵀ. PEFT computes each
term as a tensor of its own, then scales and adds them. Those tensors are as large as y, and on a CPU they are bound by
memory bandwidth. Here the LoRAs' products are added in place, forward and backward; only the dropped input and its
product with A are kept for the backward pass.

LoRA dropout has one mask for all modules that read the same tensor: q, k and v read one normalised hidden state, gate
and up another. A shared mask has the distribution of a mask of its own, so every module's expectation is unchanged. A
step draws four masks a layer instead of seven, which on a CPU saves a large part of its time, and keeps one dropped
input instead of three. On most CPUs torch draws a mask element by element, from 64 random bits each, and keeps it as
floats. Here 64 bits give four elements, of which a byte each is kept.

Gated MLPs, silu(gate) · up, keep gate and up for the backward pass and not silu(gate) too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, linear, silu

from tokenclean.models.frozen_linear import FrozenLayer
from tokenclean.models.model_parts import evaluating

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

_SILU = {"SiLU", "SiLUActivation"}
_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
_PROBE_ROWS = 4

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
            vars(layer)["forward"] = _joined_forward(layer, layer.forward)
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


def _joined_forward(layer: Linear, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    *earlier, last = _active_names(layer)
    frozen = [partial(_lora, layer, name) for name in earlier]

    def forward(x: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        a, b, scale = _lora(layer, last)
        if arguments or options or layer.disable_adapters or layer.merged or {x.dtype, a.dtype} != {torch.float32}:
            return plain(x, *arguments, **options)
        dropped = layer.lora_dropout[last](x)
        return _JoinedLora.apply(x, None if dropped is x else dropped, a, b, scale, layer.base_layer, frozen)

    return forward


def _lora(layer: Any, name: str) -> Lora:
    """To be read whenever it is needed: sharding swaps a layer's weights before and after it runs."""
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


class _JoinedLora(torch.autograd.Function):
    """``x``: (…, K) float32; ``dropped``: x after dropout, None where nothing is dropped. Gives (…, N)."""

    scale: float
    base: torch.nn.Linear | FrozenLayer
    earlier: Sequence[Callable[[], Lora]]
    is_dropped: bool

    @staticmethod
    def forward(
        ctx: _JoinedLora,
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


class SharedDropout(torch.nn.Module):
    """Dropout that returns the same result, mask and memory, when the same tensor comes twice in a row.

    One object serves a whole model, whose modules run one after another. ``rate``: probability of a zero. In eval mode
    the input itself is returned.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._last: tuple[torch.Tensor, int, bool, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        last, has_gradient = self._last, torch.is_grad_enabled()
        if last is not None and last[0] is x and last[1:3] == (x._version, has_gradient):
            return last[3]
        dropped = _Dropped.apply(x, self.rate) if x.device.type in ("cpu", "meta") else dropout(x, self.rate)
        self._last = x, x._version, has_gradient, dropped
        return dropped

    def unload(self) -> None:
        """Free the last input and result."""
        self._last = None


def keep_mask(shape: torch.Size, rate: float, device: torch.device | str = "cpu") -> tuple[torch.Tensor, float]:
    """A mask, int8, each element 0 with probability ``rate`` to the nearest 2^−16, else 1; and that probability.

    Drawn from torch's default generator, on a CPU.
    """
    dropped = min(round(rate * 65536), 65535)
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    mask = bits.view(torch.int16)[:count] >= dropped - 32768
    return mask.view(torch.int8).view(shape), dropped / 65536  # a product with int8 is three times as fast as with bool


class _Dropped(torch.autograd.Function):
    """x · mask / (1 − rate); only the mask is kept for the backward pass."""

    scale: float

    @staticmethod
    def forward(ctx: _Dropped, x: torch.Tensor, rate: float) -> torch.Tensor:
        mask, dropped = keep_mask(x.shape, rate, x.device)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - dropped)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Dropped, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (mask,) = ctx.saved_tensors
        return (grad_outputs[0] * mask).mul_(ctx.scale), None


def share_dropout(model: torch.nn.Module) -> list[SharedDropout]:
    """Give all LoRA dropouts of one rate one ``SharedDropout``; those that were put in place."""
    from peft.tuners.lora import LoraLayer

    shared: dict[float, SharedDropout] = {}
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name, child in layer.lora_dropout.items():
            if isinstance(child, torch.nn.Dropout):
                layer.lora_dropout[name] = shared.setdefault(child.p, SharedDropout(child.p))
    return list(shared.values())


def slim_gated_mlps(model: torch.nn.Module) -> int:
    """Let every MLP that computes down(silu(gate(x)) · up(x)) keep a third less; how many do.

    Each is tried out on random rows; one that computes something else is left unchanged.
    """
    slimmed, device = 0, next(model.parameters()).device
    for module in model.modules():
        if all(hasattr(module, name) for name in _PARTS) and type(module.act_fn).__name__ in _SILU:
            slim = _slim_forward(module)
            if _agree(module, slim, device):
                vars(module)["forward"] = slim
                slimmed += 1
    return slimmed


def _slim_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x)))


def _agree(module: Any, slim: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> bool:
    if device.type == "meta":  # nothing to compute with
        return True
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, _PROBE_ROWS, module.gate_proj.in_features, generator=generator).to(device)
    with evaluating(module), torch.no_grad():
        return torch.allclose(module(rows), slim(rows), atol=1e-4, rtol=1e-4)


class _Gated(torch.autograd.Function):
    """silu(gate) · up, of tensors of one shape."""

    @staticmethod
    def forward(ctx: torch.autograd.Function, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        gradient = grad_outputs[0]
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return to_gate, silu(gate).mul_(gradient)
