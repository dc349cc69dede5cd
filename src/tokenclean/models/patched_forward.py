"""Layers that run another forward for the length of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def patched_forward(
    layers: Sequence[torch.nn.Module], forwards: Sequence[Callable[..., torch.Tensor]]
) -> Iterator[None]:
    """Within the block each layer runs the forward at its place; an instance's own (accelerate's hooks) comes back."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer, forward in zip(layers, forwards, strict=True):
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward
