"""Losses of chosen positions from hidden states, a chunk of positions at a time.

Scoring and training share it: no tensor of size [tokens, vocabulary] exists beyond one chunk, forward or backward. A
loss depends on its own hidden state alone, so where the head is not trained each loss's gradient is computed together
with the loss, from the same logits; the backward pass only scales it. A trained head computes each chunk again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tokenclean.errors import ModelError
from tokenclean.models.kernels import cpu as cpu_kernels
from tokenclean.models.precision import matmul, paired_linear

CHUNK_POSITIONS = 256

MEASURES = ("loss", "entropy", "is_top1", "collision")
"""−log p(target) and the entropy of p, both in nats; 1.0 where no other token is likelier than the target, else 0.0;
the sum of p² over the vocabulary, the probability that two draws from p collide."""

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
        if not torch.is_grad_enabled():
            return self.measures(hidden_P_H, targets_P, ("loss",))["loss"]
        if not self.weight.requires_grad and (self.bias is None or not self.bias.requires_grad):
            return _LossesOfFrozenHead.apply(hidden_P_H, targets_P, self)
        chunks = zip(hidden_P_H.split(CHUNK_POSITIONS), targets_P.split(CHUNK_POSITIONS), strict=True)
        losses = [checkpoint(self._chunk_losses, hidden, targets, use_reentrant=False) for hidden, targets in chunks]
        return torch.cat(losses) if losses else hidden_P_H.new_zeros(0, dtype=torch.float32)

    def measures(
        self,
        hidden_P_H: torch.Tensor,
        targets_P: torch.Tensor,
        names: Sequence[str],
        copy: torch.Tensor | None = None,
        *,
        in_pairs: bool = False,
    ) -> Measures:
        """The measures ``names`` (of MEASURES), each float32 of shape (P,); without gradient.

        ``copy``: a copy of the weight that is faster: packed by ``kernels.cpu.pack`` on a CPU, in bf16 on a GPU.
        ``in_pairs``: ``hidden_P_H`` has 2 P rows (see ``models.pairs``), each measure shape (2 P,).
        """
        if copy is not None and copy.device.type == "cpu":
            options = self.bias, self.scale, self.softcap, not {"entropy", "collision"}.isdisjoint(names), in_pairs
            found = cpu_kernels.measures(hidden_P_H, copy, targets_P, len(self.weight), *options)
            return {name: found[MEASURES.index(name)] for name in names}
        if in_pairs:
            return self._paired_measures(hidden_P_H, targets_P, names)
        chunks = zip(hidden_P_H.split(CHUNK_POSITIONS), targets_P.split(CHUNK_POSITIONS), strict=True)
        return _joined([measures_of_logits(self._logits(hidden, copy), targets, names) for hidden, targets in chunks])

    def _paired_measures(self, hidden: torch.Tensor, targets: torch.Tensor, names: Sequence[str]) -> Measures:
        """As ``measures`` in pairs, by torch's product."""
        base, own = hidden.chunk(2)
        found: tuple[list[Measures], list[Measures]] = ([], [])
        for chunk in zip(*(side.split(CHUNK_POSITIONS) for side in (base, own, targets)), strict=True):
            logits = self._scaled(paired_linear(torch.cat(chunk[:2]), self.weight, self.bias).float())
            for parts, side in zip(found, logits.chunk(2), strict=True):
                parts.append(measures_of_logits(side, chunk[2], names))
        return _joined([*found[0], *found[1]])

    def _chunk_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return measures_of_logits(self._logits(hidden), targets, ("loss",))["loss"]

    def losses_and_gradient(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (C,) of one chunk and their gradient by the hidden states, ∂ℓ_c/∂h_c: float32, (C, H).

        That is Wᵀ(softmax(logits) − onehot(target)), times the soft cap's slope and the scale; the chunk's logits are
        overwritten, so that no second tensor of their size is held.
        """
        logits = self._logits(hidden)
        at_target = logits.gather(1, targets[:, None])
        slope = None if self.softcap is None else 1 - (logits / self.softcap).square_()
        highest = logits.amax(dim=-1, keepdim=True)
        pull = logits.sub_(highest).exp_()
        total = pull.sum(dim=-1, keepdim=True)
        pull.div_(total)
        log_total = total.log_().add_(highest)
        pull.scatter_add_(1, targets[:, None], torch.full_like(at_target, -1.0))
        if slope is not None:
            pull.mul_(slope)
        if self.scale != 1.0:
            pull.mul_(self.scale)
        gradient = (pull.to(self.weight.dtype) @ self.weight).float()
        return (log_total - at_target).squeeze(1), gradient

    def _logits(self, hidden: torch.Tensor, copy: torch.Tensor | None = None) -> torch.Tensor:
        if copy is None:
            logits = linear(hidden, self.weight, self.bias).float()
        else:
            logits = matmul(hidden.float(), copy.T)
            logits = logits if self.bias is None else logits.add_(self.bias)
        return self._scaled(logits)

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class _LossesOfFrozenHead(torch.autograd.Function):
    """Losses of a head that is not trained; their gradients are computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_P_H: torch.Tensor, targets_P: torch.Tensor, head: Head) -> torch.Tensor:
        losses = hidden_P_H.new_zeros(len(hidden_P_H), dtype=torch.float32)
        gradients = hidden_P_H.new_zeros(hidden_P_H.shape, dtype=torch.float32)
        for first in range(0, len(hidden_P_H), CHUNK_POSITIONS):
            chunk = slice(first, first + CHUNK_POSITIONS)
            losses[chunk], gradients[chunk] = head.losses_and_gradient(hidden_P_H[chunk], targets_P[chunk])
        ctx.save_for_backward(gradients)
        ctx.dtype = hidden_P_H.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradients,) = ctx.saved_tensors
        return (gradients * grad_outputs[0][:, None]).to(ctx.dtype), None, None


def measures_of_logits(logits_P_V: torch.Tensor, targets_P: torch.Tensor, names: Sequence[str]) -> Measures:
    """The measures ``names`` (of MEASURES) from float32 logits; ``loss`` is differentiable."""
    at_target = logits_P_V.gather(1, targets_P[:, None]).squeeze(1)
    log_total = torch.logsumexp(logits_P_V, dim=-1)
    found = {"loss": log_total - at_target}
    if not {"entropy", "collision"}.isdisjoint(names):
        shares = torch.softmax(logits_P_V, dim=-1)
        found["collision"] = torch.linalg.vector_norm(shares, dim=-1).square()
        found["entropy"] = log_total - (shares.mul_(logits_P_V)).sum(dim=-1)
    if "is_top1" in names:
        found["is_top1"] = (at_target >= logits_P_V.amax(dim=-1)).float()
    return {name: found[name] for name in names}


def _joined(parts: Sequence[Measures]) -> Measures:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
