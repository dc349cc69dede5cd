"""Decoder layers compiled by torch.compile at one fixed number of tokens.

What lies between the matrix products — norms, rotary embeddings, activations, residuals — is bound by memory; compiled,
each run of it reads and writes its tensors once. A layer is compiled, not the model: one piece of code serves all
layers of a kind. Other numbers of tokens run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Compiling takes about 20 to 60 seconds and saves about a tenth of a pass: it pays from a few minutes on.
_PAYS_FROM_FLOP = {"cpu": 1.5e14}
_PAYS_FROM_FLOP_ELSEWHERE = 1e16


def compiling_pays(config: Any, device_type: str, tokens: int) -> bool:
    """Whether a pass over so many tokens of a model of this configuration is long enough for its layers to be compiled.

    A function of the model's shape and the pool alone, so that base and reference, a pass that is resumed, and
    processes that share one decide alike.
    """
    text = config.get_text_config()
    parameters = 12 * text.num_hidden_layers * text.hidden_size**2  # of the layers, about
    return 2.0 * parameters * tokens >= _PAYS_FROM_FLOP.get(device_type, _PAYS_FROM_FLOP_ELSEWHERE)


class CompiledLayers:
    """The decoder layers of ``body``, compiled for flat packs of ``tokens`` tokens when they first run."""

    def __init__(self, body: torch.nn.Module, tokens: int) -> None:
        self.tokens = tokens
        self._layers = decoder_layers(body)
        self._compiled = [torch.compile(layer.forward, dynamic=False) for layer in self._layers]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block the layers run compiled."""
        replaced = [vars(layer).get("forward") for layer in self._layers]
        for layer, compiled in zip(self._layers, self._compiled, strict=True):
            vars(layer)["forward"] = compiled
        try:
            yield
        finally:
            for layer, forward in zip(self._layers, replaced, strict=True):
                del vars(layer)["forward"]
                if forward is not None:
                    vars(layer)["forward"] = forward


def decoder_layers(body: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's layers: the longest list of modules right below the body. Empty where there is none."""
    lists = [child for child in body.children() if isinstance(child, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
