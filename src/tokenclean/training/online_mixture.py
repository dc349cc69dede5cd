"""Token weights of noise-mixture cleaning from the losses of the training step itself.

The same EM as ``selection.noise_mixture.token_posterior``, on the tokens of one pack: a pack has whole rows, so a row's
noise rate is fitted within it, and neither a reference nor a base pass is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tokenclean.processes import Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe.cleaning_settings import NoiseMixtureSettings
from tokenclean.selection.noise_mixture import DEFAULT_PRIOR
from tokenclean.training.batch_packs import Pack


@dataclass(frozen=True, eq=False)
class OnlineMixture:
    """What a training needs to weigh tokens by its own losses.

    ``surprisal``: u of each id in nats, float32 (V,), from the whole pool (``selection.surprisal_table``).
    ``is_fixed``: bool, aligned with the training's tokens, those that keep their weight; None for none.
    """

    surprisal: np.ndarray
    prior: NoiseMixtureSettings = DEFAULT_PRIOR
    is_fixed: Ragged | None = None

    def take(self, rows: np.ndarray) -> OnlineMixture:
        """For a training on the given rows, int64."""
        return self if self.is_fixed is None else replace(self, is_fixed=self.is_fixed.take(rows))

    def fixed_P(self, pack: Pack) -> np.ndarray:
        """Which positions of a pack keep their weight, bool (P,); only where there is ``is_fixed``."""
        assert self.is_fixed is not None
        row, lengths = pack.row_of_position, np.array(pack.lengths)
        starts = np.cumsum(lengths) - lengths
        places = self.is_fixed.offsets[np.array(pack.rows)[row]] + pack.positions - starts[row]
        return self.is_fixed.values[places]


def online_posterior(
    losses_P: torch.Tensor, surprisal_P: torch.Tensor, row_of_P: torch.Tensor, rows: int, prior: NoiseMixtureSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior (P,) that each token is not noise, and the noise rate (R,) of each row; float32, without gradient.

    ``losses_P``, ``surprisal_P``: nats; ``row_of_P``: int64, 0 … ``rows`` − 1. A row without a token has the rate that
    the prior alone gives it.
    """
    margin = (surprisal_P - losses_P.detach()).float()
    counts = torch.zeros(rows, device=margin.device).index_add_(0, row_of_P, torch.ones_like(margin))
    rates = torch.full((rows,), prior.start, device=margin.device)
    clean = torch.zeros_like(margin)
    for number in range(prior.iterations + 1):
        log_odds = torch.log1p(-rates) - torch.log(rates)
        clean = torch.sigmoid(log_odds[row_of_P] + margin)
        if number < prior.iterations:
            noise = torch.zeros_like(counts).index_add_(0, row_of_P, 1 - clean)
            rates = (noise + prior.strength * prior.mean) / (counts + prior.strength)
    return clean, rates


class OnlineWeights:
    """The coefficients of one batch times the posteriors of their tokens.

    ``is_by_sample``: each row's coefficients keep their sum, as
    the mean of the rows' means has it; otherwise the batch's do, by a factor that is known after the last pack.
    """

    def __init__(self, mixture: OnlineMixture, device: torch.device, *, is_by_sample: bool) -> None:
        self._mixture = mixture
        self._surprisal, self._prior = torch.from_numpy(mixture.surprisal).to(device), mixture.prior
        self._is_by_sample = is_by_sample
        self._given = self._left = 0.0
        self._row_rates: dict[int, float] = {}

    def __call__(
        self, pack: Pack, targets_P: torch.Tensor, losses_P: torch.Tensor, coefficients_P: torch.Tensor
    ) -> torch.Tensor:
        """The coefficients (P,) of a pack by its losses in nats."""
        row_of_P = torch.from_numpy(pack.row_of_position).to(losses_P.device)
        is_learnt = coefficients_P >= 0  # what is unlearned keeps its weight, and says nothing about a row's noise
        posterior = torch.ones_like(losses_P, dtype=torch.float32)
        posterior[is_learnt], rates = online_posterior(
            losses_P[is_learnt],
            self._surprisal[targets_P[is_learnt]],
            row_of_P[is_learnt],
            len(pack.rows),
            self._prior,
        )
        if self._mixture.is_fixed is not None:
            is_fixed_P = torch.from_numpy(self._mixture.fixed_P(pack)).to(losses_P.device)
            posterior = torch.where(is_fixed_P, 1.0, posterior)
        if not pack.is_filler:
            self._row_rates.update(zip(pack.rows, rates.tolist(), strict=True))
        if self._is_by_sample:
            shares_P = coefficients_P.abs()
            sums = torch.zeros(2, len(pack.rows), device=losses_P.device)
            sums.index_add_(1, row_of_P, torch.stack([shares_P, shares_P * posterior]))
            posterior = posterior * (sums[0] / sums[1].clamp_min(torch.finfo(torch.float32).tiny))[row_of_P]
        weighed = coefficients_P * posterior
        self._given += float(np.abs(pack.coefficients).sum(dtype=np.float64))
        self._left += float(weighed.abs().sum(dtype=torch.float64))
        return weighed

    def over(self, processes: Processes) -> tuple[float, dict[int, float]]:
        """The factor for the batch's loss and gradient, and the noise rate of each of its rows, of all processes."""
        gathered = processes.gather((self._given, self._left, list(self._row_rates.items())))
        given, left = sum(part[0] for part in gathered), sum(part[1] for part in gathered)
        factor = given / left if left > 0 and not self._is_by_sample else 1.0
        return factor, {int(row): rate for part in gathered for row, rate in part[2]}
