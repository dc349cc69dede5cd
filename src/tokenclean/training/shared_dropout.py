"""LoRA dropout with one mask for all modules that read the same tensor.

q, k and v read one normalised hidden state, gate and up another. Each mask alone is drawn as ever; that neighbours
share it leaves every module's expectation as it was. A step draws four masks a layer instead of seven, which on a CPU
saves a large part of it, and keeps one dropped input instead of three for the backward pass.
"""

from __future__ import annotations

import torch
from torch.nn.functional import dropout


class SharedDropout(torch.nn.Module):
    """Dropout that gives a tensor that comes again at once the same result again: same mask, same memory.

    One object serves a whole model, whose modules run one after another. ``rate``: probability of a zero. In eval mode
    the input is returned as it is.
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
        dropped = dropout(x, self.rate)
        self._last = x, x._version, has_gradient, dropped
        return dropped

    def let_go(self) -> None:
        """Free the last input and result."""
        self._last = None

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def share_dropout(model: torch.nn.Module) -> list[SharedDropout]:
    """Give all LoRA dropouts of one rate one ``SharedDropout``; which were put in place."""
    from peft.tuners.lora import LoraLayer

    shared: dict[float, SharedDropout] = {}
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name, child in layer.lora_dropout.items():
            if isinstance(child, torch.nn.Dropout):
                layer.lora_dropout[name] = shared.setdefault(child.p, SharedDropout(child.p))
    return list(shared.values())
