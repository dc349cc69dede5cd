"""Decoder layers compiled by torch.compile at one fixed number of tokens.

What runs between the matrix products — norms, rotary embeddings, activations, residuals — is bound by memory; compiled,
each chain of it reads and writes its tensors once. A layer is compiled, not the model: one piece of code serves all
layers of a kind. Other numbers of tokens run uncompiled.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from tokenclean.models.precision import patched_forward

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PAYS_FROM_FLOP = 1e16
"""Useful ones of a pass: on an H200 compiling pays from less than half of it (docs/log.md)."""


def compiling_pays(config: PreTrainedConfig, device_type: str, tokens: int) -> bool:
    """Whether a pass over so many tokens of a model of this configuration is long enough for its layers to be compiled.

    Never on a CPU: there it takes a minute and saves at most a tenth of a pass (docs/benchmarks.md). A function of the
    model's shape and the pool alone, so that base and reference, a pass that is resumed, and processes that share one
    decide alike.
    """
    text = config.get_text_config()
    parameters = 12 * text.num_hidden_layers * text.hidden_size**2  # of the layers, about
    return device_type != "cpu" and 2.0 * parameters * tokens >= _PAYS_FROM_FLOP


class CompiledLayers:
    """The decoder layers of ``body``, compiled for flat packs of ``tokens`` tokens when they first run."""

    def __init__(self, body: torch.nn.Module, tokens: int) -> None:
        self.tokens = tokens
        self._layers = decoder_layers(body)
        self._compiled = [torch.compile(layer.forward, dynamic=False) for layer in self._layers]

    def running(self) -> AbstractContextManager[None]:
        """Within the block the layers run compiled."""
        return patched_forward(self._layers, self._compiled)


def decoder_layers(body: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's layers: the longest list of modules directly below the body. Empty where there is none."""
    lists = [child for child in body.children() if isinstance(child, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
