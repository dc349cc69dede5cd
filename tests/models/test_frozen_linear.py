from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from tokenclean.models import frozen_linear
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.frozen_linear import FrozenLinear, hold_frozen
from tokenclean.models.kernels.cpu import has_bf16_kernels


@pytest.fixture(params=["kernels", "torch in bf16", "torch in float32"])
def products(request, monkeypatch):
    """Whose products a frozen layer uses."""
    if request.param == "kernels":
        if not has_bf16_kernels():
            pytest.skip("this processor has no bf16 instructions")
        return request.param
    monkeypatch.setattr(frozen_linear, "has_bf16_kernels", lambda: False)
    monkeypatch.setattr("tokenclean.models.device.cpu_multiplies_bf16", lambda: request.param == "torch in bf16")
    return request.param


@pytest.mark.parametrize("has_bias", [True, False])
def test_output_and_gradient_are_those_of_the_rounded_weight(products, has_bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(33, 70, bias=has_bias)
    x, pull = torch.randn(2, 5, 33, requires_grad=True), torch.randn(2, 5, 70)
    frozen = FrozenLinear(layer)
    found = frozen(x)
    found.backward(pull)
    weight, tolerance = layer.weight.detach().bfloat16().float(), 1e-5 if products == "torch in float32" else 0.05
    expected = linear(x.detach(), weight, layer.bias)
    assert found.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(x.grad, pull @ weight, atol=tolerance * 2, rtol=tolerance)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_nothing_but_the_bf16_weight_is_kept(products):
    frozen = FrozenLinear(torch.nn.Linear(64, 128, bias=False))
    held = sum(t.numel() * t.element_size() for t in (*frozen.parameters(), *frozen.buffers()))
    assert held == 64 * 128 * 2 * (2 if products == "kernels" else 1)


def test_only_plain_frozen_layers_of_the_body_are_replaced(small_model, pack):
    model = small_model("llama").requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    with torch.no_grad():
        exact = CausalLM(model).losses(*pack)
    count = hold_frozen(model.model, in_bf16=True)
    kinds = [type(m) for m in model.model.modules() if type(m) in (torch.nn.Linear, FrozenLinear)]
    assert kinds.count(torch.nn.Linear) == 1
    assert kinds.count(FrozenLinear) == count == 7 * len(model.model.layers) - 1
    assert type(model.lm_head) is torch.nn.Linear
    assert hold_frozen(model.model, in_bf16=True) == 0
    causal_lm = CausalLM(model)
    assert causal_lm.is_packed
    with torch.no_grad():
        rounded = causal_lm.losses(*pack)
    assert 0 < (rounded - exact).abs().mean() < 0.05
