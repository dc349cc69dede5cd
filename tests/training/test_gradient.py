"""batch_loss against the naive oracle: full logits of each conversation alone, weighted by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_llama import naive_losses, random_rows, small_llama, weights_from

from tokenclean.models.causal_lm import CausalLM
from tokenclean.ragged import Ragged
from tokenclean.recipe import LoraSettings
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.collate import batch_packs
from tokenclean.training.trainer import batch_loss

LENGTHS = [23, 9, 1, 40, 17, 2, 31, 12]
ONE_PACK, MANY_PACKS, ONE_ROW_A_PACK = 10_000, 45, 1


@pytest.fixture(scope="module")
def batch() -> tuple[Ragged, Ragged]:
    """Random float weights; row 1 has nothing selected, row 3 a single token early on, row 5 its last."""
    input_ids = random_rows(LENGTHS)
    rows = [row.copy() for row in weights_from(input_ids)]
    rows[1][:] = 0
    rows[3][:] = 0
    rows[3][4] = 0.7
    rows[5][:] = [0, 1.3]
    return input_ids, Ragged.from_rows(rows, np.float64)


def full() -> torch.nn.Module:
    return small_llama().train()


def lora() -> torch.nn.Module:
    model = add_fresh_lora(small_llama(), LoraSettings(rank=4, alpha=6, dropout=0), None).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def naive_loss(model: torch.nn.Module, input_ids: Ragged, weights: Ragged, normalisation: str) -> torch.Tensor:
    numerators, denominators = [], []
    for ids, row in zip(input_ids, weights, strict=True):
        if row.any():
            weight = torch.from_numpy(row[1:]).float()
            numerators.append((weight * naive_losses(model, ids)).sum())
            denominators.append(weight.sum())
    if normalisation == "token":
        return torch.stack(numerators).sum() / torch.stack(denominators).sum()
    return (torch.stack(numerators) / torch.stack(denominators)).mean()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("build", [full, lora])
@pytest.mark.parametrize("normalisation", ["token", "sample"])
def test_loss_and_gradients_equal_the_naive_ones_whatever_the_packs(build, normalisation, batch):
    input_ids, weights = batch
    model = build()
    causal_lm = CausalLM(model)
    assert causal_lm.is_packed
    expected_loss = naive_loss(model, input_ids, weights, normalisation)
    expected_loss.backward()
    expected = gradients(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, g in expected.items() if g is not None and g.abs().max() > 1e-4}
    assert any("embed_tokens" in n for n in trainable) == (build is full)
    for pack_tokens, count in ((ONE_PACK, 1), (MANY_PACKS, None), (ONE_ROW_A_PACK, 6)):
        packs = batch_packs(
            input_ids, weights, range(len(LENGTHS)), pack_tokens=pack_tokens, loss_normalisation=normalisation
        )
        assert len(packs) == count if count else 1 < len(packs) < 6
        loss = batch_loss(causal_lm, packs, torch.Tensor.backward)
        assert loss == pytest.approx(float(expected_loss.detach()), abs=1e-5)
        for name, gradient in gradients(model).items():
            if name in trainable:
                assert (gradient - expected[name]).abs().max() < 1e-5, (name, pack_tokens)
            else:
                assert gradient is None
        with torch.no_grad():
            assert batch_loss(causal_lm, packs) == pytest.approx(loss, abs=1e-6)


def test_both_normalisations_differ_here(batch):
    model = small_llama()
    with torch.no_grad():
        token, sample = (float(naive_loss(model, *batch, n)) for n in ("token", "sample"))
    assert abs(token - sample) > 0.01


def test_nothing_behind_the_last_selected_token_bears_on_the_loss(batch):
    input_ids, weights = batch
    changed = [row.copy() for row in input_ids]
    changed[3][5:] = 3
    others = Ragged.from_rows(changed, np.int64)
    causal_lm = CausalLM(small_llama())
    with torch.no_grad():
        first, second = (
            batch_loss(causal_lm, batch_packs(ids, weights, [3, 0], pack_tokens=ONE_PACK, loss_normalisation="token"))
            for ids in (input_ids, others)
        )
    assert first == second


def test_no_packs_are_a_loss_of_zero_and_no_gradient():
    model = full()
    assert batch_loss(CausalLM(model), [], torch.Tensor.backward) == 0
    assert all(p.grad is None for p in model.parameters())
