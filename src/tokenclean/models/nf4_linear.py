"""Linear layers that are not trained, held in 4-bit NF4, between float32 activations.

For training alone: no score is ever computed with them. Quantized by bitsandbytes in blocks of 64 weights with a
float32 scale each, a weight takes 4.5 bits; it is dequantized for each product, forward and backward, and then freed.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch.nn.functional import pad

from tokenclean.errors import MissingExtraError
from tokenclean.models.device import gains_from_bf16
from tokenclean.models.frozen_linear import FrozenLayer, replace_frozen

BLOCK = 64
"""Weights that share a scale."""


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


def hold_frozen_in_nf4(
    body: torch.nn.Module, *, in_bf16: bool = False, device: torch.device | str | None = None
) -> int:
    """Replace the frozen layers of ``body`` by ``Nf4Linear``, as ``replace_frozen`` does; raises as ``Nf4Linear``."""
    return replace_frozen(body, lambda layer: Nf4Linear(layer, in_bf16=in_bf16, device=device))


def bitsandbytes_functions() -> ModuleType:
    """``bitsandbytes.functional``. Raises MissingExtraError."""
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "quantization", "training.quantization: nf4") from error
    return bitsandbytes.functional
