"""Losses of chosen positions from hidden states, a chunk of positions at a time.

Scoring and training share it: no tensor of size [tokens, vocabulary] exists beyond one chunk, forward or backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tokenclean.errors import ModelError

CHUNK_POSITIONS = 256


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: ``softcap(scale · (h Wᵀ + b))``.

    ``weight``: (V, H); ``bias``: (V,) or None; ``scale``: float; ``softcap``: c in c·tanh(logits / c), or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def losses(self, hidden_P_H: torch.Tensor, targets_P: torch.Tensor) -> torch.Tensor:
        """−log softmax(logits)[target] of each position, float32 nats, shape (P,); differentiable."""
        chunks = []
        for hidden, targets in zip(hidden_P_H.split(CHUNK_POSITIONS), targets_P.split(CHUNK_POSITIONS), strict=True):
            if torch.is_grad_enabled():
                chunks.append(checkpoint(self._chunk_losses, hidden, targets, use_reentrant=False))
            else:
                chunks.append(self._chunk_losses(hidden, targets))
        return torch.cat(chunks) if chunks else hidden_P_H.new_zeros(0, dtype=torch.float32)

    def _chunk_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return torch.logsumexp(logits, dim=-1) - logits.gather(1, targets[:, None]).squeeze(1)


def head_of(model: PreTrainedModel) -> Head:
    """The model's own output layer, with the logit scale and soft cap that its configuration names.

    Raises ModelError where the model has no plain linear output layer.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"{type(model).__name__} has no linear output layer")
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))
