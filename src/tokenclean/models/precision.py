"""Precision policies: where float32 may give way to bf16, and where never.

=========  ==============================  ===================================================
policy     inside matrix products          elsewhere
=========  ==============================  ===================================================
``exact``  float32                         float32
``safe``   bf16 inputs, float32 sums       float32, attention's products included
``fast``   bf16 inputs, weights, outputs   float32 residual, norms, RoPE, softmax, log-sum-exp
=========  ==============================  ===================================================

Where our CPU kernels serve, products give float32 under every policy, and ``fast`` differs from ``safe`` by bf16 inside
attention's products alone. Without them ``safe`` permits bf16 inside products (torch's ``medium``), which torch uses
where the processor gains from it, and the head stays float32. A CPU without bf16 instructions would take far longer for
bf16 than for float32: there all policies compute in float32, and what is recorded with the losses says so. On a GPU
``fast`` gives float32 queries, keys and values to bf16 attention kernels. Adapters stay unmerged under every policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from tokenclean.models.bf16_matmul import product
from tokenclean.models.device import cpu_multiplies_bf16
from tokenclean.models.kernels.cpu import has_bf16_kernels, missing_kernels, pack
from tokenclean.models.kernels.cpu import linear as packed_linear

Precision = Literal["exact", "safe", "fast"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(precision: str) -> None:
    """Raise ValueError for an unknown policy."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")


@contextmanager
def precision_policy(
    body: torch.nn.Module, precision: str, *, with_kernels: bool = True
) -> Iterator[Callable[[], None]]:
    """Run the block under a policy. ``body`` is the model below its output layer.

    Without gradient, on a CPU that has them, linear layers go through ``kernels.cpu``: float32 under ``exact``, bf16
    inputs and weights with float32 sums and outputs under ``safe`` and ``fast``. Elsewhere ``fast`` computes linear
    layers in bf16, and the others are torch's. A weight's copy is kept within the block until the weight changes; a
    trained weight is rounded anew each time and gets its gradient in float32. No copy outlives its block: fused
    optimizers and ``.data`` (PEFT's merging) change a weight without a trace.

    Yields a function that brings all copies up to date, to be called before compiled code runs, which does not look.
    Raises ValueError for an unknown policy.
    """
    check_precision(precision)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "exact" else "medium")
    has_kernels = with_kernels and not torch.is_grad_enabled() and uses_kernels(body)
    is_replacing = has_kernels or (precision == "fast" and _torch_multiplies_bf16(body))
    layers = [m for m in body.modules() if type(m) is torch.nn.Linear] if is_replacing else []
    replaced = [vars(layer).get("forward") for layer in layers]  # an instance's own forward, as of accelerate's hooks
    copies: list[CopyOfWeight] = []
    for layer in layers:
        copy = _copy_for(layer, precision if has_kernels else None)
        copies.append(copy)
        vars(layer)["forward"] = _packed_forward(layer, copy) if has_kernels else _bf16_forward(layer, copy)

    def refresh() -> None:
        for copy in copies:
            copy.refresh()

    try:
        yield refresh
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward
        torch.set_float32_matmul_precision(before)


def uses_kernels(module: torch.nn.Module) -> bool:
    """Whether the module's float32 products can go through the CPU kernels, compiled now where need be."""
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return False
    return missing_kernels() is None


def multiplies_bf16(module: torch.nn.Module) -> bool:
    """Whether products without gradient take bf16 where the weights are, through our kernels or torch's."""
    return has_bf16_kernels() if uses_kernels(module) else _torch_multiplies_bf16(module)


def _torch_multiplies_bf16(module: torch.nn.Module) -> bool:
    parameter = next(module.parameters(), None)
    return parameter is None or parameter.device.type != "cpu" or cpu_multiplies_bf16()


class CopyOfWeight:
    """A weight's copy in another form, made again when the weight has changed."""

    def __init__(self, weight: Callable[[], torch.Tensor], form: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._weight, self._form = weight, form
        self._copy: torch.Tensor | None = None
        self._copied_state = (0, 0)

    def __call__(self) -> torch.Tensor:
        if not torch.compiler.is_compiling() or self._copy is None:  # compiled code relies on ``refresh``
            self.refresh()
        assert self._copy is not None
        return self._copy

    def refresh(self) -> None:
        """Make the copy, or make it again where the weight is no longer what was copied."""
        weight = self._weight()
        state = (weight._version, weight.data_ptr())
        if self._copy is None or state != self._copied_state:
            self._copy, self._copied_state = self._form(weight.detach()), state


def packed_copy(weight: Callable[[], torch.Tensor], precision: str) -> CopyOfWeight:
    """The weight packed for the CPU kernels, in bf16 where policy and processor allow it, else in float32."""
    as_bf16 = precision != "exact" and has_bf16_kernels()
    return CopyOfWeight(weight, lambda w: pack(w, as_bf16=as_bf16))


def _copy_for(layer: torch.nn.Linear, precision: str | None) -> CopyOfWeight:
    """Of the layer's weight: packed for a policy, or in bf16 as it stands."""
    if precision is not None:
        return packed_copy(lambda: layer.weight, precision)
    return CopyOfWeight(lambda: layer.weight, lambda weight: weight.to(torch.bfloat16))


def _packed_forward(layer: torch.nn.Linear, packed: CopyOfWeight) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("this block began without gradient; begin another one to train")
        return packed_linear(x, packed(), layer.out_features, layer.bias)

    return forward


def _bf16_forward(layer: torch.nn.Linear, copy: CopyOfWeight) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        is_trained = layer.weight.requires_grad and torch.is_grad_enabled()
        weight = layer.weight.to(torch.bfloat16) if is_trained else copy()
        output = product(x, weight)
        return output if layer.bias is None else output + layer.bias

    return forward
