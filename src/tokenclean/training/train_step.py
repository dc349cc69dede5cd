"""The forward and backward passes of one optimizer step over selected tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tokenclean.errors import TrainingError
from tokenclean.models.causal_lm import CausalLM, body_of
from tokenclean.models.frozen_linear import hold_frozen
from tokenclean.models.kernels.cpu import has_bf16_kernels
from tokenclean.models.nf4_linear import hold_frozen_in_nf4
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.collate import Pack, batch_packs, split_pack
from tokenclean.training.fused_lora import join_lora_products
from tokenclean.training.gated_mlp import slim_gated_mlps
from tokenclean.training.online_mixture import OnlineMixture, online_posterior
from tokenclean.training.shared_dropout import SharedDropout, share_dropout

logger = logging.getLogger(__name__)

Backward = Callable[[torch.Tensor], None]
LossesOf = Callable[[torch.Tensor, Sequence[int], torch.Tensor], torch.Tensor]
"""As ``CausalLM.losses``."""

_BUCKET_ELEMENTS = 1 << 25


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
    """A model made ready for steps under ``settings``: its precision, dropout and checkpointing put in place.

    ``model``: a float32 transformers causal LM or the PEFT model around one; its frozen linear layers may be replaced
    for good, with ``quantization: nf4`` by 4-bit ones, under ``mixed`` by bf16 ones, on a CPU under ``exact`` and
    ``safe`` by packed ones. ``device``: where it is moved, its 4-bit layers only once they are such; by default it
    stays where it is. ``longest_row`` as of ``CausalLM``. A call takes the rows of one optimizer batch, adds their
    gradients up, pack by pack, and returns the batch's loss in nats; the optimizer is the caller's, and zeroes the
    gradients between batches. Raises as ``prepare_layers``.

    With a ``mixture`` each token's weight is multiplied by the posterior that it is no noise, from its detached loss in
    this very step: Σ p·w·ℓ / Σ p·|w|. ``row_rates`` then holds the noise rate last found of each row.

    Among several ``processes`` each runs its own packs of the batch; gradients, loss and rates are then those of the
    whole batch on every rank. ``module`` is what ``sharding.shard`` shards: with ``is_sharded`` the ranks meet in every
    pack, and their gradients are averaged there.
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
        self._surprisal = None
        if mixture is not None:
            self._surprisal = torch.from_numpy(mixture.surprisal).to(self.causal_lm.device)

    def __call__(
        self, input_ids: Ragged, weights: Ragged, rows: Sequence[int], backward: Backward = torch.Tensor.backward
    ) -> float:
        return self.train_packs(self.packs(input_ids, weights, rows), backward)

    def packs(self, input_ids: Ragged, weights: Ragged, rows: Sequence[int]) -> list[Pack]:
        """This rank's packs of the batch; ``batch_packs`` under the settings."""
        return batch_packs(
            input_ids,
            weights,
            rows,
            pack_tokens=self._pack_tokens,
            loss_normalisation=self.settings.loss_normalisation,
            processes=self.processes,
        )

    def train_packs(self, packs: list[Pack], backward: Backward = torch.Tensor.backward) -> float:
        """Gradients of a batch in training mode; the batch's loss in nats.

        Where the GPU's memory is not enough the batch is begun again in packs of half the size, which are kept to from
        then on: packs do not bear on a training's mathematics. Raises TrainingError where single rows do not fit, or
        where the model is sharded, since all processes would have to begin again.
        """
        while True:
            try:
                loss = self._train_packs(packs, self._averaged(backward))
                break
            except torch.OutOfMemoryError as error:
                told = str(error).splitlines()[0]
            packs = self._halved(packs, told)
        if self.processes.count == 1:
            return loss
        if not self.is_sharded:
            self._add_up_gradients()
        return self._over_processes(loss)

    def _halved(self, packs: list[Pack], told: str) -> list[Pack]:
        """The packs in halves, memory and gradients freed; raises TrainingError where nothing is left to halve."""
        if self.is_sharded:
            raise TrainingError(
                f"a pack of {self._pack_tokens:,} tokens does not fit into the device's memory ({told}); lower "
                "training.pack_tokens, or set training.activation_checkpointing"
            )
        halves = [half for pack in packs for half in split_pack(pack)]
        if len(halves) == len(packs):
            longest = max(len(pack.input_ids) for pack in packs)
            raise TrainingError(
                f"a single row of {longest:,} tokens does not fit into the device's memory ({told}); set "
                "training.activation_checkpointing, lower tokens.max_length, or take precision: mixed"
            )
        self._pack_tokens = max(1, min(self._pack_tokens, max(len(pack.input_ids) for pack in packs)) // 2)
        logger.warning("out of memory; going on in packs of at most %d tokens (%s)", self._pack_tokens, told)
        self.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return halves

    def _train_packs(self, packs: list[Pack], backward: Backward) -> float:
        self.model.train()
        try:
            with self.causal_lm.precision(self._policy, bf16_attention=self._has_bf16_attention):
                if self._mixture is None:
                    return batch_loss(self.module, packs, self.causal_lm.device, backward)
                return self._train_on_posterior(packs, self._mixture, backward)
        finally:
            for dropout in self._dropouts:
                dropout.unload()

    def loss_of_packs(self, packs: list[Pack]) -> float:
        """The batch's loss in nats, in eval mode and without gradient."""
        self.model.eval()
        # A sharded weight comes and goes: no copy of it could tell whether it is still the weight's.
        with (
            torch.no_grad(),
            self.causal_lm.precision(
                self._policy, with_kernels=not self.is_sharded, bf16_attention=self._has_bf16_attention
            ),
        ):
            return self._over_processes(batch_loss(self.module, packs, self.causal_lm.device))

    def _over_processes(self, loss: float) -> float:
        return sum(self.processes.gather(loss))

    def _averaged(self, backward: Backward) -> Backward:
        """With a sharded model the processes' gradients come out averaged, where their sum is the batch's."""
        count = self.processes.count
        return (lambda loss: backward(loss * count)) if self.is_sharded else backward

    def _add_up_gradients(self) -> None:
        """Give every rank the sum of all processes' gradients, some megabytes at a time."""
        gradients = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        first = elements = 0
        for place, gradient in enumerate(gradients, start=1):
            elements += gradient.numel()
            if elements >= _BUCKET_ELEMENTS or place == len(gradients):
                bucket = gradients[first:place]
                flat = torch.cat([part.flatten() for part in bucket])
                self.processes.all_reduce(flat)
                for part, whole in zip(bucket, flat.split([part.numel() for part in bucket]), strict=True):
                    part.copy_(whole.view_as(part))
                first, elements = place, 0

    def _train_on_posterior(self, packs: list[Pack], mixture: OnlineMixture, backward: Backward) -> float:
        """As ``batch_loss``, the coefficients times the posterior, brought back to the sum that they had before.

        For the mean over tokens that sum is known after the last pack alone, so the gradient is scaled then.
        """
        total, given, left = 0.0, 0.0, 0.0
        row_rates: dict[int, float] = {}
        is_by_sample = self.settings.loss_normalisation == "sample"
        for pack in packs:
            ids, positions, coefficients = _on_device(pack, self.causal_lm.device)
            losses = _finite(self.module(ids, pack.lengths, positions), pack)
            posterior, rates = self._posterior(pack, ids[positions], losses, mixture)
            if not pack.is_filler:
                row_rates.update(zip(pack.rows, rates.tolist(), strict=True))
            coefficients = coefficients * (_kept_by_row(pack, coefficients, posterior) if is_by_sample else posterior)
            given += float(np.abs(pack.coefficients).sum(dtype=np.float64))
            left += float(coefficients.abs().sum(dtype=torch.float64))
            loss = (losses * coefficients).sum()
            backward(loss)
            total += float(loss.detach())
        told = self.processes.gather([given, left, list(row_rates.items())])
        given, left = (sum(part[place] for part in told) for place in (0, 1))
        self.row_rates.update((int(row), rate) for part in told for row, rate in part[2])
        factor = given / left if left > 0 and not is_by_sample else 1.0
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return total * factor

    def _posterior(
        self, pack: Pack, targets: torch.Tensor, losses: torch.Tensor, mixture: OnlineMixture
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each position, and the noise rate of each row of the pack."""
        assert self._surprisal is not None
        row_of_position = torch.from_numpy(pack.row_of_position).to(losses.device)
        return online_posterior(losses, self._surprisal[targets], row_of_position, len(pack.rows), mixture.prior)

    @property
    def _has_bf16_attention(self) -> bool:
        """On a GPU queries, keys and values under ``mixed`` come out of bf16 products, and kernels for packs take
        bf16 alone."""
        return self.settings.precision == "mixed" and self.causal_lm.device.type == "cuda"

    @property
    def _policy(self) -> str:
        """Of what is not frozen: adapters, norms and head compute as under ``safe`` where the base is in bf16."""
        return "safe" if self.settings.precision == "mixed" else self.settings.precision


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
        replaced = hold_frozen_in_nf4(body, in_bf16=settings.precision in ("fast", "mixed"), device=device)
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
        _let_go_of_files(model)
    slim_gated_mlps(model)
    if is_lora and settings.precision != "fast":  # fast rounds the LoRAs' own products too
        join_lora_products(model)
    return dropouts


def batch_loss(losses_of: LossesOf, packs: list[Pack], device: torch.device, backward: Backward | None = None) -> float:
    """Σ coefficient · ℓ over all packs, in nats; with ``backward``, each pack's share is handed to it at once.

    ``losses_of``: as ``CausalLM.losses``, on ``device``. Raises NonFiniteLossError naming the row, before any gradient
    of its pack.
    """
    total = 0.0
    for pack in packs:
        ids, positions, coefficients = _on_device(pack, device)
        loss = (_finite(losses_of(ids, pack.lengths, positions), pack) * coefficients).sum()
        if backward is not None:
            backward(loss)
        total += float(loss.detach())
    return total


def _let_go_of_files(model: torch.nn.Module) -> None:
    """A weight that lies in a mapped file keeps the whole file in memory, also what has been replaced."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.detach().clone()


def _on_device(pack: Pack, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, positions and coefficients."""
    ids, positions, coefficients = map(torch.from_numpy, (pack.input_ids, pack.positions, pack.coefficients))
    return ids.to(device), positions.to(device), coefficients.to(device)


def _finite(losses: torch.Tensor, pack: Pack) -> torch.Tensor:
    """The losses, unless one is not finite."""
    found = losses.detach()
    if not math.isfinite(float(found.sum())) and (bad := torch.nonzero(~torch.isfinite(found)).flatten().tolist()):
        raise NonFiniteLossError(pack.rows[int(pack.row_of_position[bad[0]])], float(found[bad[0]]))
    return losses


def _kept_by_row(pack: Pack, coefficients: torch.Tensor, posterior: torch.Tensor) -> torch.Tensor:
    """The posterior divided by its mean over the row, each token counted by its coefficient."""
    row = torch.from_numpy(pack.row_of_position).to(posterior.device)
    sums = torch.zeros(2, len(pack.rows), device=posterior.device)
    share = coefficients.abs()
    sums.index_add_(1, row, torch.stack([share, share * posterior]))
    return posterior * (sums[0] / sums[1].clamp_min(torch.finfo(torch.float32).tiny))[row]
