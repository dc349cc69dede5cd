"""Noise-mixture weights of a batch that also unlearns."""

from __future__ import annotations

import numpy as np
import torch

from tokenclean.processes import SINGLE_PROCESS
from tokenclean.ragged import Ragged
from tokenclean.training.batch_packs import batch_packs
from tokenclean.training.online_mixture import OnlineMixture, OnlineWeights

IDS = Ragged.from_rows([[1, 2, 3, 4, 5], [1, 2, 3, 4]], np.int64)
WEIGHTS = Ragged.from_rows([[0, 1, 0.5, 1, 0], [0, 1, 1, 0]], np.float32)
UNLEARNED = Ragged.from_rows([[0, 1, 0.5, 1, -0.5], [0, 1, 1, -1]], np.float32)


def reweighed(weights: Ragged) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """The batch's coefficients before and after, and the noise rates of its rows."""
    (pack,) = batch_packs(IDS, weights, [0, 1], pack_tokens=100, loss_normalisation="token")
    online = OnlineWeights(OnlineMixture(np.full(6, 3.0, np.float32)), torch.device("cpu"), is_by_sample=False)
    targets = pack.input_ids[pack.positions]
    losses = torch.from_numpy(np.where(targets == 3, 9.0, 0.5).astype(np.float32))  # the token 3 looks like noise
    coefficients = torch.from_numpy(pack.coefficients)
    after = online(pack, torch.from_numpy(targets), losses, coefficients)
    return pack.coefficients, after.numpy(), online.over(SINGLE_PROCESS)[1]


def test_tokens_to_unlearn_keep_their_weight_and_say_nothing_about_noise():
    before, after, rates = reweighed(UNLEARNED)
    np.testing.assert_array_equal(after[before < 0], before[before < 0])
    assert (after[before > 0] < before[before > 0]).all()
    _, plain, plain_rates = reweighed(WEIGHTS)
    np.testing.assert_allclose(after[before > 0] / after[before > 0].sum(), plain / plain.sum(), rtol=1e-6)
    assert rates == plain_rates
