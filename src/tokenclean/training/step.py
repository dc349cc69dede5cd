"""The forward and backward passes of one optimizer step over selected tokens."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tokenclean.errors import TrainingError
from tokenclean.models.causal_lm import CausalLM, body_of
from tokenclean.models.frozen_linear import hold_frozen_in_bf16
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.collate import Pack, batch_packs, split_pack
from tokenclean.training.online_mixture import OnlineMixture, online_posterior
from tokenclean.training.shared_dropout import share_dropout

logger = logging.getLogger(__name__)

Backward = Callable[[torch.Tensor], None]


class NonFiniteLossError(ArithmeticError):
    """A loss is NaN or inf. ``row``: the first row with such a token; ``loss``: of that token."""

    def __init__(self, row: int, loss: float) -> None:
        super().__init__(f"a loss of row {row} is {loss}")
        self.row, self.loss = row, loss


class TrainingStep:
    """A model made ready for steps under ``settings``: its precision, dropout and checkpointing put in place.

    ``model``: a float32 transformers causal LM or the PEFT model around one; under ``mixed`` its frozen linear layers
    are replaced by bf16 ones, for good. ``longest_row`` as of ``CausalLM``. A call takes the rows of one optimizer
    batch, adds their gradients up, pack by pack, and returns the batch's loss in nats; the optimizer is the caller's,
    and zeroes the gradients between batches.

    With a ``mixture`` each token's weight is multiplied by the posterior that it is no noise, from its detached loss in
    this very step: Σ p·w·ℓ / Σ p·|w|. ``row_rates`` then holds the noise rate last found of each row.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: TrainingSettings,
        *,
        longest_row: int = 0,
        mixture: OnlineMixture | None = None,
    ) -> None:
        self.model, self._settings, self._mixture = model, settings, mixture
        self.row_rates: dict[int, float] = {}
        self._pack_tokens = settings.pack_tokens
        self._dropouts = share_dropout(model) if settings.method == "lora" and settings.lora.shared_dropout else []
        if settings.precision == "mixed":
            hold_frozen_in_bf16(body_of(model))
        self.causal_lm = CausalLM(model, longest_row=longest_row)
        if settings.activation_checkpointing:
            self.causal_lm.checkpoint_activations()
        self._surprisal = None
        if mixture is not None:
            self._surprisal = torch.from_numpy(mixture.surprisal).to(self.causal_lm.device)

    def __call__(
        self, input_ids: Ragged, weights: Ragged, rows: Sequence[int], backward: Backward = torch.Tensor.backward
    ) -> float:
        return self.train_packs(self.packs(input_ids, weights, rows), backward)

    def packs(self, input_ids: Ragged, weights: Ragged, rows: Sequence[int]) -> list[Pack]:
        """The batch in packs; ``batch_packs`` under the settings."""
        normalisation = self._settings.loss_normalisation
        return batch_packs(input_ids, weights, rows, pack_tokens=self._pack_tokens, loss_normalisation=normalisation)

    def train_packs(self, packs: list[Pack], backward: Backward = torch.Tensor.backward) -> float:
        """Gradients of a batch in training mode; the batch's loss in nats.

        Where the GPU's memory is not enough the batch is begun again in packs of half the size, which are kept to from
        then on: packs do not bear on a training's mathematics. Raises TrainingError where single rows do not fit.
        """
        while True:
            try:
                return self._train_packs(packs, backward)
            except torch.OutOfMemoryError as error:
                told = str(error).splitlines()[0]
            packs = self._halved(packs, told)

    def _halved(self, packs: list[Pack], told: str) -> list[Pack]:
        """The packs in halves, memory and gradients freed; raises TrainingError where nothing is left to halve."""
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
            with self.causal_lm.precision(self._policy):
                if self._mixture is None:
                    return batch_loss(self.causal_lm, packs, backward)
                return self._train_on_posterior(packs, self._mixture, backward)
        finally:
            for dropout in self._dropouts:
                dropout.let_go()

    def loss_of_packs(self, packs: list[Pack]) -> float:
        """The batch's loss in nats, in eval mode and without gradient."""
        self.model.eval()
        with torch.no_grad(), self.causal_lm.precision(self._policy):
            return batch_loss(self.causal_lm, packs)

    def _train_on_posterior(self, packs: list[Pack], mixture: OnlineMixture, backward: Backward) -> float:
        """As ``batch_loss``, the coefficients times the posterior, brought back to the sum that they had before.

        For the mean over tokens that sum is known after the last pack alone, so the gradient is scaled then.
        """
        total, given, left = 0.0, 0.0, 0.0
        is_by_sample = self._settings.loss_normalisation == "sample"
        for pack in packs:
            ids, positions, coefficients = _on_device(pack, self.causal_lm.device)
            losses = _finite(self.causal_lm.losses(ids, pack.lengths, positions), pack)
            posterior = self._posterior(pack, ids[positions], losses, mixture)
            coefficients = coefficients * (_kept_by_row(pack, coefficients, posterior) if is_by_sample else posterior)
            given += float(np.abs(pack.coefficients).sum(dtype=np.float64))
            left += float(coefficients.abs().sum(dtype=torch.float64))
            loss = (losses * coefficients).sum()
            backward(loss)
            total += float(loss.detach())
        factor = given / left if left > 0 and not is_by_sample else 1.0
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return total * factor

    def _posterior(
        self, pack: Pack, targets: torch.Tensor, losses: torch.Tensor, mixture: OnlineMixture
    ) -> torch.Tensor:
        assert self._surprisal is not None
        row_of_position = torch.from_numpy(pack.row_of_position).to(losses.device)
        posterior, rates = online_posterior(
            losses, self._surprisal[targets], row_of_position, len(pack.rows), mixture.prior
        )
        self.row_rates.update(zip(pack.rows, rates.tolist(), strict=True))
        return posterior

    @property
    def _policy(self) -> str:
        """Of what is not frozen: adapters, norms and head compute as under ``safe`` where the base is in bf16."""
        return "safe" if self._settings.precision == "mixed" else self._settings.precision


def batch_loss(causal_lm: CausalLM, packs: list[Pack], backward: Backward | None = None) -> float:
    """Σ coefficient · ℓ over all packs, in nats; with ``backward``, each pack's share is handed to it at once.

    Raises NonFiniteLossError naming the row, before any gradient of its pack.
    """
    total = 0.0
    for pack in packs:
        ids, positions, coefficients = _on_device(pack, causal_lm.device)
        loss = (_finite(causal_lm.losses(ids, pack.lengths, positions), pack) * coefficients).sum()
        if backward is not None:
            backward(loss)
        total += float(loss.detach())
    return total


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
