"""LoRA dropout with one mask for all modules that read the same tensor, drawn cheaply on a CPU.

q, k and v read one normalised hidden state, gate and up another. A shared mask has the distribution of a mask of its
own, so every module's expectation is unchanged. A step draws four masks a layer instead of seven, which on a CPU saves
a large part of its time, and keeps one dropped input instead of three for the backward pass.

On most CPUs torch draws a mask element by element, from 64 random bits each, and keeps it as floats. Here 64 bits give
four elements, of which a byte each is kept.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout


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

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


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
