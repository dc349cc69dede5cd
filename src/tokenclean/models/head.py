"""Losses of chosen positions from hidden states, a chunk of positions at a time.

Scoring and training share it: no tensor of size [tokens, vocabulary] exists beyond one chunk, forward or backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tokenclean.errors import ModelError
from tokenclean.models.kernels import cpu as cpu_kernels

CHUNK_POSITIONS = 256

MEASURES = ("loss", "entropy", "is_top1")
"""−log p(target) and the entropy of p, both in nats; 1.0 where no other token is likelier than the target, else 0.0."""

Measures = dict[str, torch.Tensor]


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

    def measures(
        self,
        hidden_P_H: torch.Tensor,
        targets_P: torch.Tensor,
        names: Sequence[str],
        packed: torch.Tensor | None = None,
    ) -> Measures:
        """What ``names`` (of MEASURES) ask for, each float32 of shape (P,); without gradient.

        ``packed``: the weight as ``kernels.cpu.pack`` gives it, to go through the CPU kernels.
        """
        if packed is not None:
            vocabulary, with_entropy = self.weight.shape[0], "entropy" in names
            found = cpu_kernels.measures(
                hidden_P_H,
                packed,
                targets_P,
                vocabulary,
                bias=self.bias,
                scale=self.scale,
                softcap=self.softcap,
                with_entropy=with_entropy,
            )
            return {name: found[MEASURES.index(name)] for name in names}
        chunks = zip(hidden_P_H.split(CHUNK_POSITIONS), targets_P.split(CHUNK_POSITIONS), strict=True)
        parts = [measures_of_logits(self._logits(hidden), targets, names) for hidden, targets in chunks]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def _chunk_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return measures_of_logits(self._logits(hidden), targets, ("loss",))["loss"]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def measures_of_logits(logits_P_V: torch.Tensor, targets_P: torch.Tensor, names: Sequence[str]) -> Measures:
    """What ``names`` (of MEASURES) ask for, from float32 logits; ``loss`` is differentiable."""
    at_target = logits_P_V.gather(1, targets_P[:, None]).squeeze(1)
    log_total = torch.logsumexp(logits_P_V, dim=-1)
    found = {"loss": log_total - at_target}
    if "entropy" in names:
        shares = torch.softmax(logits_P_V, dim=-1)
        found["entropy"] = log_total - (shares.mul_(logits_P_V)).sum(dim=-1)
    if "is_top1" in names:
        found["is_top1"] = (at_target >= logits_P_V.amax(dim=-1)).float()
    return {name: found[name] for name in names}


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
