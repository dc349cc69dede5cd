"""Gated MLPs, silu(gate) · up, that keep gate and up for the backward pass and not silu(gate) too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from tokenclean.models.model_parts import evaluating

_SILU = {"SiLU", "SiLUActivation"}
_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
_PROBE_ROWS = 4


def slim_gated_mlps(model: torch.nn.Module) -> int:
    """Let every MLP that computes down(silu(gate(x)) · up(x)) keep a third less; how many do.

    Each is tried out on random rows; one that computes something else is left unchanged.
    """
    slimmed, device = 0, next(model.parameters()).device
    for module in model.modules():
        if all(hasattr(module, name) for name in _PARTS) and type(module.act_fn).__name__ in _SILU:
            slim = _forward_of(module)
            if _agree(module, slim, device):
                vars(module)["forward"] = slim
                slimmed += 1
    return slimmed


def _forward_of(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
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
