"""A layer and its LoRAs as one function: PEFT's own layer is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from small_llama import small_llama

from tokenclean.models.frozen_linear import hold_frozen
from tokenclean.models.model_parts import body_of
from tokenclean.recipe import LoraSettings
from tokenclean.training.adapters import add_fresh_lora, save_rounds
from tokenclean.training.lean_layers import _JoinedLora, join_lora_products, share_dropout

IDS = torch.randint(3, 61, (1, 12), generator=torch.Generator().manual_seed(0))
LAYERS = 14


def with_lora(*, dropout: float = 0.0, earlier=None) -> torch.nn.Module:
    model = add_fresh_lora(small_llama(), LoraSettings(rank=4, alpha=6, dropout=dropout), earlier).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model


@pytest.fixture
def earlier(tmp_path):
    """The folder of an adapter of an earlier round."""
    save_rounds(with_lora(), tmp_path / "earlier", base="base")
    return tmp_path / "earlier"


def step_of(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(2)  # of the dropout
    logits = model(input_ids=IDS).logits
    logits.square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_logits_and_gradients_are_pefts(dropout, rounds, in_bf16, request):
    plain = with_lora(dropout=dropout, earlier=request.getfixturevalue("earlier") if rounds == 2 else None)
    share_dropout(plain)
    if in_bf16:
        hold_frozen(body_of(plain), in_bf16=True)
    joined = copy.deepcopy(plain)
    assert join_lora_products(joined) == LAYERS
    logits, gradients = step_of(joined)
    expected, expected_gradients = step_of(plain)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    assert len(gradients) == 2 * LAYERS
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=2e-5, rtol=1e-4)
    joined.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(joined(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_disabled_adapter_stays_disabled():
    model = with_lora()
    join_lora_products(model)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, small_llama()(input_ids=IDS).logits)


@pytest.mark.parametrize("is_dropped", [True, False])
def test_the_derivatives_are_those_of_the_formula(is_dropped):
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 7).double().requires_grad_(False)
    x, dropped = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    a = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)

    def product(x, a, b, dropped=None):
        return _JoinedLora.apply(x, dropped, a, b, 0.5, layer, ())

    read = (dropped,) if is_dropped else ()
    expected = layer(x) + 0.5 * (dropped if is_dropped else x) @ a.T @ b.T
    torch.testing.assert_close(product(x, a, b, *read), expected)
    assert torch.autograd.gradcheck(product, (x, a, b, *read))


@pytest.mark.parametrize("what", ["trained base", "lora bias", "merged"])
def test_other_layers_go_on_as_peft_computes_them(what):
    model = with_lora()
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    if what == "trained base":
        layer.base_layer.weight.requires_grad_(True)
    elif what == "lora bias":
        layer.lora_bias["round"] = True
    else:
        join_lora_products(model)
        layer.merge()
        x = torch.randn(1, 3, 32)
        torch.testing.assert_close(layer(x), layer.base_layer(x))
        return
    assert join_lora_products(model) == LAYERS - 1
