"""batch_loss against the naive oracle: full logits of each conversation alone, weighted by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_llama import VOCABULARY, naive_losses, random_rows, small_llama, weights_from

from tokenclean.errors import TrainingError
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.frozen_linear import FrozenLinear
from tokenclean.ragged import Ragged
from tokenclean.recipe import LoraSettings, TrainingSettings
from tokenclean.recipe.cleaning_settings import NoiseMixtureSettings
from tokenclean.selection import surprisal_table
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.batch_packs import batch_packs
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.train_step import TrainingStep, batch_loss

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
        loss = batch_loss(causal_lm.losses, packs, causal_lm.device, torch.Tensor.backward)
        assert loss == pytest.approx(float(expected_loss.detach()), abs=1e-5)
        for name, gradient in gradients(model).items():
            if name in trainable:
                assert (gradient - expected[name]).abs().max() < 1e-5, (name, pack_tokens)
            else:
                assert gradient is None
        with torch.no_grad():
            assert batch_loss(causal_lm.losses, packs, causal_lm.device) == pytest.approx(loss, abs=1e-6)


def test_both_normalisations_differ_here(batch):
    model = small_llama()
    with torch.no_grad():
        token, sample = (float(naive_loss(model, *batch, n)) for n in ("token", "sample"))
    assert abs(token - sample) > 0.01


def test_negative_weights_raise_their_tokens_losses(batch):
    input_ids, weights = batch
    signs = np.where(np.arange(len(weights.values)) % 3 == 0, -1.0, 1.0)
    signed = weights.with_values(weights.values * signs)
    model = lora()
    packs = batch_packs(input_ids, signed, range(len(LENGTHS)), pack_tokens=MANY_PACKS, loss_normalisation="token")
    loss = batch_loss(CausalLM(model).losses, packs, torch.device("cpu"), torch.Tensor.backward)
    found = gradients(model)
    parts = [
        (torch.from_numpy(row[1:]).float() * naive_losses(model, ids)).sum()
        for ids, row in zip(input_ids, signed, strict=True)
        if row.any()
    ]
    expected_loss = torch.stack(parts).sum() / np.abs(signed.values).sum()
    expected_loss.backward()
    assert loss == pytest.approx(float(expected_loss.detach()), abs=1e-5)
    for name, gradient in gradients(model).items():
        assert gradient is None or (gradient - found[name]).abs().max() < 1e-5


def test_nothing_behind_the_last_selected_token_bears_on_the_loss(batch):
    input_ids, weights = batch
    changed = [row.copy() for row in input_ids]
    changed[3][5:] = 3
    others = Ragged.from_rows(changed, np.int64)
    causal_lm = CausalLM(small_llama())
    options = {"pack_tokens": ONE_PACK, "loss_normalisation": "token"}
    with torch.no_grad():
        first, second = (
            batch_loss(causal_lm.losses, batch_packs(ids, weights, [3, 0], **options), causal_lm.device)
            for ids in (input_ids, others)
        )
    assert first == second


def test_no_packs_are_a_loss_of_zero_and_no_gradient():
    model = full()
    assert batch_loss(CausalLM(model).losses, [], torch.device("cpu"), torch.Tensor.backward) == 0
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture(params=["highest", "medium"])
def _float32_products(request):
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_float32_products")
@pytest.mark.parametrize("build", [full, lora])
def test_checkpointed_activations_give_the_same_gradients_packed(build, batch, monkeypatch):
    input_ids, weights = batch
    model = build()
    packs = batch_packs(input_ids, weights, range(len(LENGTHS)), pack_tokens=MANY_PACKS, loss_normalisation="token")
    causal_lm = CausalLM(model)
    expected_loss = batch_loss(causal_lm.losses, packs, causal_lm.device, torch.Tensor.backward)
    expected = gradients(model)
    layer, calls = causal_lm.lm.model.layers[0], []
    monkeypatch.setattr(layer.mlp, "forward", lambda x, real=layer.mlp.forward: calls.append(len(x[0])) or real(x))
    causal_lm.checkpoint_activations()
    model.train()
    loss = batch_loss(causal_lm.losses, packs, causal_lm.device, torch.Tensor.backward)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert calls == [n for pack in packs for n in [len(pack.input_ids)] * 2]  # once forward, once again for backward
    for name, gradient in gradients(model).items():
        assert (gradient is None) == (expected[name] is None)
        assert gradient is None or (gradient - expected[name]).abs().max() < 1e-6, name


def test_out_of_memory_halves_the_packs_and_nothing_else(batch, monkeypatch, caplog):
    input_ids, weights = batch
    settings = TrainingSettings(precision="exact", pack_tokens=ONE_PACK, lora=LoraSettings(dropout=0))
    model = lora()
    step = TrainingStep(model, settings)
    expected_loss = step(input_ids, weights, range(len(LENGTHS)))
    expected = gradients(model)
    real, tried = step.causal_lm.losses, []

    def small_device(ids, lengths, positions):
        tried.append(len(ids))
        if len(tried) == 3 or len(ids) > 60:  # the third call: with gradients of the batch on the model already
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return real(ids, lengths, positions)

    monkeypatch.setattr(step.causal_lm, "losses", small_device)
    assert step(input_ids, weights, range(len(LENGTHS))) == pytest.approx(expected_loss, abs=1e-6)
    for name, gradient in gradients(model).items():
        assert gradient is None or (gradient - expected[name]).abs().max() < 1e-6
    assert tried[0] > 60 >= max(tried[-2:])
    assert "continuing in packs of at most" in caplog.text
    count = len(tried)
    step(input_ids, weights, range(len(LENGTHS)))
    assert max(tried[count:]) <= 60  # the smaller budget is kept to


def test_a_row_that_does_not_fit_alone_is_an_error_with_its_remedy(batch, monkeypatch):
    step = TrainingStep(lora(), TrainingSettings(precision="exact", lora=LoraSettings(dropout=0)))

    def no_device(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step.causal_lm, "losses", no_device)
    with pytest.raises(TrainingError, match=r"a single row of 31 tokens does not fit .*activation_checkpointing"):
        step(*batch, range(len(LENGTHS)))


def test_mixed_rounds_the_frozen_base_once_and_nothing_else(batch):
    input_ids, weights = batch
    results = {}
    for precision in ("exact", "mixed"):
        model = lora()
        step = TrainingStep(model, TrainingSettings(precision=precision, lora=LoraSettings(dropout=0)))
        results[precision] = step(input_ids, weights, range(len(LENGTHS))), gradients(model)
    assert step.causal_lm.is_packed
    assert "chunked head" in step.causal_lm.kernel
    lm = step.causal_lm.lm
    frozen = {id(p) for layer in lm.modules() if isinstance(layer, FrozenLinear) for p in layer.parameters()}
    others = {p.dtype for p in lm.parameters() if id(p) not in frozen}
    assert others == {torch.float32}  # norms, embeddings, head, adapters
    held = [*lm.named_buffers(), *lm.named_parameters()]
    assert {t.dtype for n, t in held if ".base_layer." in n} == {torch.bfloat16}
    (exact, expected), (mixed, found) = results["exact"], results["mixed"]
    assert 0 < abs(mixed - exact) < 0.05
    named = [name for name, gradient in expected.items() if gradient is not None]
    assert named == [name for name, gradient in found.items() if gradient is not None]
    for name in named:
        assert torch.nn.functional.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0) > 0.98


def online_oracle(model, input_ids, weights, prior, surprisal, normalisation):
    """Loss by the definition: posterior weights from detached losses, row by row, in numpy."""
    losses, factors, rows = [], [], []
    for ids, row in zip(input_ids, weights, strict=True):
        places = np.flatnonzero(row)
        if not len(places):
            continue
        loss = naive_losses(model, ids)[places - 1]
        margin = surprisal[ids[places]] - loss.detach().numpy().astype(np.float64)
        rate = prior.start
        for _ in range(prior.iterations):
            noise = 1 - 1 / (1 + rate / (1 - rate) * np.exp(-margin))
            rate = (noise.sum() + prior.strength * prior.mean) / (len(places) + prior.strength)
        clean = 1 / (1 + rate / (1 - rate) * np.exp(-margin))
        losses.append(loss)
        factors.append(torch.from_numpy(clean * row[places]).float())
        rows.append(rate)
    sums = [(f * loss).sum() for f, loss in zip(factors, losses, strict=True)]
    if normalisation == "token":
        return torch.stack(sums).sum() / sum(f.sum() for f in factors), rows
    return torch.stack([s / f.sum() for s, f in zip(sums, factors, strict=True)]).mean(), rows


@pytest.mark.parametrize("normalisation", ["token", "sample"])
@pytest.mark.parametrize("pack_tokens", [ONE_PACK, MANY_PACKS])
def test_online_weights_and_their_gradient_are_those_of_the_definition(batch, normalisation, pack_tokens):
    input_ids, weights = batch
    prior = NoiseMixtureSettings(mean=0.1, strength=5)
    surprisal = surprisal_table(input_ids, weights.map_values(lambda w: w > 0), VOCABULARY)
    settings = TrainingSettings(
        precision="exact", pack_tokens=pack_tokens, loss_normalisation=normalisation, lora=LoraSettings(dropout=0)
    )
    model = lora()
    expected_loss, rates = online_oracle(model, input_ids, weights, prior, surprisal, normalisation)
    expected_loss.backward()
    expected = gradients(model)
    step = TrainingStep(model, settings, mixture=OnlineMixture(surprisal, prior))
    assert step(input_ids, weights, range(len(LENGTHS))) == pytest.approx(float(expected_loss.detach()), rel=1e-4)
    for name, gradient in gradients(model).items():
        assert gradient is None or torch.allclose(gradient, expected[name], atol=2e-5, rtol=2e-3), name
    assert [step.row_rates[row] for row in sorted(step.row_rates)] == pytest.approx(rates, abs=1e-4)
    assert max(rates) > 0.2
