"""Linear layers that are not trained, held in bf16, in our kernels' packed form or in NF4; activations stay float32.

A frozen weight needs no float32 master copy. Held in bf16 it takes half the memory, and products take bf16 where the
device gains from it; outputs and gradients are always float32, so residual stream, norms and adapters stay as exact as
their inputs. Our CPU kernels need the weight packed twice, for the forward and for the backward pass.

NF4 is for training alone: no score is ever computed with it. Quantized by bitsandbytes in blocks of 64 weights with a
float32 scale each, a weight takes 4.5 bits; it is dequantized for each product, forward and backward, and then freed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from tokenclean.errors import MissingExtraError
from tokenclean.models.device import gains_from_bf16
from tokenclean.models.kernels.cpu import has_bf16_kernels, pack
from tokenclean.models.kernels.cpu import linear as packed_linear
from tokenclean.models.precision import matmul, uses_kernels

BLOCK = 64
"""Weights of an NF4 layer that share a scale."""


class FrozenLayer(torch.nn.Module):
    """A linear layer that is not trained: float32 (…, K) to float32 (…, N), with a gradient for the input alone.

    ``_weight_for`` gives the weight in the dtype of the products; the bias stays float32.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _FrozenMatmul.apply(x, self)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """x Wᵀ + b, in a new tensor."""
        output = matmul(x, self._weight_for(x).T)
        return output if self.bias is None else output.add_(self.bias)

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient by the input, gradient · W, in a new tensor."""
        return matmul(gradient, self._weight_for(gradient))

    def _weight_for(self, x: torch.Tensor) -> torch.Tensor:
        """(N, K), on the device of ``x``."""
        raise NotImplementedError


class FrozenLinear(FrozenLayer):
    """``layer`` with its weight rounded to bf16, once, or packed in float32.

    Products in bf16 run in our CPU kernels (bf16 inputs, float32 sums) where these are available, in torch's where the
    device has them, else in float32 on a copy of the weight made for each product. Without ``in_bf16`` they run in our
    kernels in float32, which the caller has checked to be available. ``weight``: (N, K) bf16, or None where the
    kernels' two packed forms replace it.
    """

    packed: torch.Tensor | None
    packed_back: torch.Tensor | None
    weight: torch.nn.Parameter | None

    def __init__(self, layer: torch.nn.Linear, *, in_bf16: bool = True) -> None:
        super().__init__(layer)
        weight = layer.weight.detach()
        is_packed = weight.device.type == "cpu" and (has_bf16_kernels() or not in_bf16)
        self.register_buffer("packed", pack(weight, as_bf16=in_bf16) if is_packed else None, persistent=False)
        self.register_buffer("packed_back", pack(weight.T, as_bf16=in_bf16) if is_packed else None, persistent=False)
        # A parameter, not a buffer, so that it can be sharded.
        kept = None if is_packed else torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        self.register_parameter("weight", kept)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is not None:
            return packed_linear(x, self.packed, self.out_features, self.bias)
        return super().linear(x)

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.packed_back is not None:
            return packed_linear(gradient, self.packed_back, self.in_features, None)
        return super().input_gradient(gradient)

    def _weight_for(self, x: torch.Tensor) -> torch.Tensor:
        assert self.weight is not None
        return self.weight if gains_from_bf16(x.device) else self.weight.to(x.dtype)


class Nf4Linear(FrozenLayer):
    """``layer`` with its weight rounded to NF4, once.

    Products run in bf16 with ``in_bf16`` where the device gains from it, else in float32. Buffers, none of them saved:
    ``codes``, uint8, two weights each; ``scales`` (blocks,), float32. ``device``: where the buffers are, by default
    that of the layer. Raises MissingExtraError without bitsandbytes.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(
        self, layer: torch.nn.Linear, *, in_bf16: bool = False, device: torch.device | str | None = None
    ) -> None:
        super().__init__(layer)
        self._in_bf16 = in_bf16
        flat = layer.weight.detach().to(device or layer.weight.device).flatten()
        # One row a block: bitsandbytes' CPU kernel misreads some rows that end within a block (32, 48, 96 weights).
        blocks = pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        codes, state = bitsandbytes_functions().quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", state.absmax, persistent=False)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight after rounding, (N, K)."""
        functions = bitsandbytes_functions()
        shape = torch.Size((len(self.scales), BLOCK))
        state = functions.QuantState(self.scales, shape=shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
        flat = functions.dequantize_4bit(self.codes, state).flatten()
        return flat[: self.out_features * self.in_features].view(self.out_features, self.in_features)

    def _weight_for(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequantized(torch.bfloat16 if self._in_bf16 and gains_from_bf16(x.device) else x.dtype)


class _FrozenMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenLayer) -> torch.Tensor:
        ctx.layer = layer
        return layer.linear(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (ctx.layer.input_gradient(grad_outputs[0]) if ctx.needs_input_grad[0] else None), None


def hold_frozen(body: torch.nn.Module, *, in_bf16: bool) -> int:
    """Replace the frozen layers of ``body`` by ``FrozenLinear``, as ``replace_frozen`` does.

    Without ``in_bf16`` none is replaced where our CPU kernels are missing: torch's float32 products are as good then.
    """
    if not in_bf16 and not uses_kernels(body):
        return 0
    return replace_frozen(body, lambda layer: FrozenLinear(layer, in_bf16=in_bf16))


def replace_frozen(body: torch.nn.Module, form: Callable[[torch.nn.Linear], FrozenLayer]) -> int:
    """Replace every plain linear layer of ``body`` whose weight and bias are not trained; returns how many.

    Call it once adapters are in place, since they wrap plain layers. Embeddings, norms and the output layer, which is
    outside the body, stay float32, and so do the layers of LoRAs, those of earlier rounds included.
    """
    frozen = [
        (parent, name, layer)
        for path, parent in body.named_modules()
        for name, layer in parent.named_children()
        if type(layer) is torch.nn.Linear
        and not any(p.requires_grad for p in layer.parameters())
        and not path.rpartition(".")[2].startswith("lora_")
    ]
    for parent, name, layer in frozen:
        setattr(parent, name, form(layer))
    return len(frozen)


def bitsandbytes_functions() -> ModuleType:
    """``bitsandbytes.functional``. Raises MissingExtraError."""
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "quantization", "training.quantization: nf4") from error
    return bitsandbytes.functional
