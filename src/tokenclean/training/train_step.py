"""The forward and backward passes of one optimizer step over selected tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch.distributed.fsdp import FSDPModule

from tokenclean.errors import TrainingError
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.device import trim_heap
from tokenclean.models.frozen_linear import Nf4Linear, hold_frozen, replace_frozen
from tokenclean.models.kernels.cpu import has_bf16_kernels
from tokenclean.models.model_parts import body_of
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.batch_packs import Pack, batch_packs
from tokenclean.training.lean_layers import SharedDropout, join_lora_products, share_dropout, slim_gated_mlps
from tokenclean.training.online_mixture import OnlineMixture, OnlineWeights

logger = logging.getLogger(__name__)

Backward = Callable[[torch.Tensor], None]
LossesOf = Callable[[torch.Tensor, Sequence[int], torch.Tensor], torch.Tensor]
"""As ``CausalLM.losses``."""

_BUCKET_ELEMENTS = 1 << 25
_TRIMMED_STEPS = 8
"""Steps after which the heap's free memory is returned: so long it grows, and trimming it takes its time too."""


class NonFiniteLossError(ArithmeticError):
    """A loss is NaN or inf. ``row``: the first row with such a token; ``loss``: of that token."""

    def __init__(self, row: int, loss: float) -> None:
        super().__init__(f"a loss of row {row} is {loss}")
        self.row, self.loss = row, loss


class PackLosses(torch.nn.Module):
    """``CausalLM.losses`` as a module's forward, so that a sharded model gathers its weights around the whole of it."""

    def __init__(self, causal_lm: CausalLM) -> None:
        super().__init__()
        self.model = causal_lm.model
        self._causal_lm = causal_lm

    def forward(self, input_ids: torch.Tensor, lengths: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
        return self._causal_lm.losses(input_ids, lengths, positions)


class TrainingStep:
    """A model made ready for steps under ``settings``: its precision, dropout and activation checkpointing.

    ``model``: a float32 transformers causal LM or the PEFT model around one; its frozen linear layers may be replaced
    for good, with ``quantization: nf4`` by 4-bit ones, under ``mixed`` by bf16 ones, on a CPU under ``exact`` and
    ``safe`` by packed ones. ``device``: where it is moved, its 4-bit layers only once they are such; by default it
    stays where it is. ``longest_row`` as of ``CausalLM``. The optimizer is the caller's, who zeroes the gradients
    between batches. Raises as ``prepare_layers``.

    With a ``mixture`` each token's weight is multiplied by the posterior that it is not noise, from its detached loss
    in this very step: Σ p·w·ℓ / Σ p·|w|. ``row_rates`` then holds the noise rate last found of each row.

    Among several ``processes`` each runs its own packs of the batch; gradients, loss and rates are then those of the
    whole batch in every process. ``module`` is what ``sharding.distribute`` shards: with ``is_sharded`` the processes
    meet in every pack, and their gradients are averaged there.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: TrainingSettings,
        *,
        device: torch.device | str | None = None,
        longest_row: int = 0,
        mixture: OnlineMixture | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.model, self.settings, self._mixture, self.processes = model, settings, mixture, processes
        self.is_sharded = False
        self._steps = 0
        self.row_rates: dict[int, float] = {}
        if device is not None and settings.quantization == "none":
            model.to(device)
        # Before any weight is rounded: its probe holds packed and plain losses to float32's differences.
        self.causal_lm = CausalLM(model, longest_row=longest_row)
        self._dropouts = prepare_layers(model, settings, device)
        self._pack_tokens = settings.pack_tokens_on(self.causal_lm.device.type)
        if settings.activation_checkpointing:
            self.causal_lm.checkpoint_activations()
        self.module = PackLosses(self.causal_lm)

    def __call__(self, input_ids: Ragged, weights: Ragged, rows: Sequence[int]) -> float:
        """Gradients of a batch in training mode, added up pack by pack; the batch's loss in nats.

        Where the GPU's memory is not enough the batch is begun again in packs of half the size, as are later batches:
        the packs do not change a training's mathematics. Raises TrainingError where single rows do not fit, or where
        the model is sharded, since all processes would have to begin again.
        """
        while True:
            packs = self._packs(input_ids, weights, rows)
            try:
                loss = self._train(packs)
                break
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            self._halve_packs(packs, reason)
        if self.processes.count > 1 and not self.is_sharded:
            self._add_up_gradients()
        self._steps += 1
        if self._steps % _TRIMMED_STEPS == 0 and self.causal_lm.device.type == "cpu":
            trim_heap()
        return sum(self.processes.gather(loss))

    def loss_of(self, input_ids: Ragged, weights: Ragged, rows: Sequence[int]) -> float:
        """The batch's loss in nats, in eval mode and without gradient."""
        self.model.eval()
        # A sharded weight comes and goes, so a kernel's copy of it could not know whether it is still the weight's.
        with torch.no_grad(), self._precision(with_kernels=not self.is_sharded):
            loss = batch_loss(self.module, self._packs(input_ids, weights, rows), self.causal_lm.device)
        if isinstance(self.module, FSDPModule):
            # The forward pass leaves the weights of the unit around the layers whole; until they are freed, the
            # parameters are other objects than the optimizer's.
            self.module.reshard()
        return sum(self.processes.gather(loss))

    def _packs(self, input_ids: Ragged, weights: Ragged, rows: Sequence[int]) -> list[Pack]:
        """This process's packs of the batch."""
        return batch_packs(
            input_ids,
            weights,
            rows,
            pack_tokens=self._pack_tokens,
            loss_normalisation=self.settings.loss_normalisation,
            processes=self.processes,
        )

    def _train(self, packs: list[Pack]) -> float:
        online = None
        if self._mixture is not None:
            is_by_sample = self.settings.loss_normalisation == "sample"
            online = OnlineWeights(self._mixture, self.causal_lm.device, is_by_sample=is_by_sample)
        self.model.train()
        try:
            with self._precision():
                loss = batch_loss(self.module, packs, self.causal_lm.device, self._backward, online)
        finally:
            for dropout in self._dropouts:
                dropout.unload()
        if online is None:
            return loss
        factor, row_rates = online.over(self.processes)
        self.row_rates.update(row_rates)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return loss * factor

    def _backward(self, loss: torch.Tensor) -> None:
        """Of a sharded model the gradients come out averaged over the processes; their sum is the batch's."""
        (loss * self.processes.count if self.is_sharded else loss).backward()

    def _precision(self, *, with_kernels: bool = True) -> AbstractContextManager[None]:
        """What is not frozen (adapters, norms, head) computes under ``mixed`` as under ``safe``. On a GPU its queries,
        keys and values come out of bf16 products, and kernels for packs take bf16 alone."""
        is_mixed = self.settings.precision == "mixed"
        policy = "safe" if is_mixed else self.settings.precision
        bf16_attention = is_mixed and self.causal_lm.device.type == "cuda"
        return self.causal_lm.precision(policy, with_kernels=with_kernels, bf16_attention=bf16_attention)

    def _halve_packs(self, packs: list[Pack], reason: str) -> None:
        """Smaller packs from now on, memory and gradients freed; raises TrainingError where there are none."""
        if self.is_sharded:
            raise TrainingError(
                f"a pack of {self._pack_tokens:,} tokens does not fit into the device's memory ({reason}); lower "
                "training.pack_tokens, or set training.activation_checkpointing"
            )
        longest = max(len(pack.input_ids) for pack in packs)
        if all(len(pack.rows) == 1 for pack in packs):
            raise TrainingError(
                f"a single row of {longest:,} tokens does not fit into the device's memory ({reason}); set "
                "training.activation_checkpointing, lower tokens.max_length, or take precision: mixed"
            )
        self._pack_tokens = max(1, min(self._pack_tokens, longest) // 2)
        logger.warning("out of memory; continuing in packs of at most %d tokens (%s)", self._pack_tokens, reason)
        self.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _add_up_gradients(self) -> None:
        """Give every process the sum of all processes' gradients, some megabytes at a time."""
        gradients = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        first = elements = 0
        for end, gradient in enumerate(gradients, start=1):
            elements += gradient.numel()
            if elements >= _BUCKET_ELEMENTS or end == len(gradients):
                bucket = gradients[first:end]
                flat = torch.cat([part.flatten() for part in bucket])
                self.processes.all_reduce(flat)
                for part, total in zip(bucket, flat.split([part.numel() for part in bucket]), strict=True):
                    part.copy_(total.view_as(part))
                first, elements = end, 0


def prepare_layers(
    model: torch.nn.Module, settings: TrainingSettings, device: torch.device | str | None = None
) -> list[SharedDropout]:
    """Let the layers of ``model``, whose adapters are in place, compute as ``TrainingStep`` runs them.

    ``device``: where 4-bit layers are made, and then the rest is moved. Returns the dropouts that hold on to a tensor.
    Raises TrainingError where there is nothing to quantize, MissingExtraError without bitsandbytes.
    """
    is_lora = settings.method == "lora"
    dropouts = share_dropout(model) if is_lora and settings.lora.shared_dropout else []
    body, replaced = body_of(model), 0
    if settings.quantization == "nf4":
        in_bf16 = settings.precision in ("fast", "mixed")
        replaced = replace_frozen(body, lambda layer: Nf4Linear(layer, in_bf16=in_bf16, device=device))
        if device is not None:
            model.to(device)
        if not replaced:
            raise TrainingError(
                f"training.quantization: {type(body).__name__} has no plain linear layer to hold in nf4; set it to none"
            )
    elif settings.precision == "mixed":
        replaced = hold_frozen(body, in_bf16=True)
    elif settings.precision in ("exact", "safe") and settings.sharding == "none":  # what is packed is not sharded
        replaced = hold_frozen(body, in_bf16=settings.precision == "safe" and has_bf16_kernels())
    if replaced:
        # A weight in a mapped file keeps the whole file in memory, and with it the weights that were replaced.
        for parameter in model.parameters():
            if parameter.device.type == "cpu":
                parameter.data = parameter.detach().clone()
    slim_gated_mlps(model)
    if is_lora and settings.precision != "fast":  # fast rounds the LoRAs' own products too
        join_lora_products(model)
    return dropouts


def batch_loss(
    losses_of: LossesOf,
    packs: list[Pack],
    device: torch.device,
    backward: Backward | None = None,
    reweigh: OnlineWeights | None = None,
) -> float:
    """Σ coefficient · ℓ over all packs, in nats; with ``backward``, each pack's share is passed to it at once.

    ``losses_of``: as ``CausalLM.losses``, on ``device``. ``reweigh``: gives other coefficients. Raises
    NonFiniteLossError naming the row, before any gradient of its pack.
    """
    total = 0.0
    for pack in packs:
        ids, positions, coefficients = (
            torch.from_numpy(array).to(device) for array in (pack.input_ids, pack.positions, pack.coefficients)
        )
        losses = losses_of(ids, pack.lengths, positions)
        _check_finite(losses.detach(), pack)
        if reweigh is not None:
            coefficients = reweigh(pack, ids[positions], losses, coefficients)
        loss = (losses * coefficients).sum()
        if backward is not None:
            backward(loss)
        total += float(loss.detach())
    return total


def _check_finite(losses: torch.Tensor, pack: Pack) -> None:
    if not math.isfinite(float(losses.sum())) and (bad := torch.nonzero(~torch.isfinite(losses)).flatten().tolist()):
        raise NonFiniteLossError(pack.rows[int(pack.row_of_position[bad[0]])], float(losses[bad[0]]))
