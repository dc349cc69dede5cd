"""Token weights of noise-mixture cleaning from the losses of the training step itself.

The same EM as ``selection.noise_mixture.token_posterior``, on the tokens of one pack: a row lies in one pack whole, so
its noise rate is fitted there and then, and neither a reference nor a base pass is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tokenclean.selection.noise_mixture import DEFAULT_PRIOR, NoisePrior


@dataclass(frozen=True, eq=False)
class OnlineMixture:
    """What a training needs to weigh tokens by its own losses.

    ``surprisal``: u of each id in nats, float32 (V,), of the whole pool (``selection.surprisal_table``).
    """

    surprisal: np.ndarray
    prior: NoisePrior = DEFAULT_PRIOR


def online_posterior(
    losses_P: torch.Tensor, surprisal_P: torch.Tensor, row_of_P: torch.Tensor, rows: int, prior: NoisePrior
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
