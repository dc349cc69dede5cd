"""Layers in NF4 against the definition: each weight the nearest of sixteen numbers times the largest of its block."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.functional import linear, pad

from tokenclean.errors import MissingExtraError
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.frozen_linear import BLOCK, Nf4Linear, replace_frozen

# The data type's sixteen numbers, as its authors print them (QLoRA, appendix E).
NEGATIVE = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
NEGATIVE += [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495]
POSITIVE = [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
POSITIVE += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
NF4 = torch.tensor([*NEGATIVE, 0.0, *POSITIVE])
SHAPES = [(64, 128), (48, 32), (32, 48), (70, 33), (5, 7), (3, 192)]
"""(N, K): blocks within rows, over the ends of rows, and a last block that is not full."""


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """The definition, in float32."""
    flat = weight.detach().flatten()
    blocks = pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = NF4[(blocks / scales)[..., None].sub(NF4).abs().argmin(-1)]
    return (nearest * scales).flatten()[: len(flat)].view_as(weight)


@pytest.fixture(params=["bf16", "float32"])
def multiplies_bf16(request, monkeypatch) -> bool:
    """Whether the processor has bf16 products, as the layer is made to believe."""
    monkeypatch.setattr("tokenclean.models.device.cpu_multiplies_bf16", lambda: request.param == "bf16")
    return request.param == "bf16"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_weight_is_rounded_as_the_definition_says(shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    found = Nf4Linear(layer).dequantized(torch.float32)
    assert (found.shape, found.dtype) == (shape, torch.float32)
    torch.testing.assert_close(found, rounded(layer.weight), atol=1e-7, rtol=1e-6)
    # Half of the widest gap between two of the numbers, times the largest magnitude that there can be.
    assert 0 < (found - layer.weight).abs().max() < 0.153 * shape[1] ** -0.5


@pytest.mark.parametrize("in_bf16", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(70, 33), (48, 32)], ids=str)
def test_output_and_gradient_are_those_of_the_rounded_weight(shape, has_bias, in_bf16, multiplies_bf16):
    torch.manual_seed(0)
    layer = torch.nn.Linear(shape[1], shape[0], bias=has_bias)
    x, pull = torch.randn(2, 5, shape[1], requires_grad=True), torch.randn(2, 5, shape[0])
    frozen = Nf4Linear(layer, in_bf16=in_bf16)
    found = frozen(x)
    found.backward(pull)
    weight, tolerance = rounded(layer.weight), 0.05 if in_bf16 and multiplies_bf16 else 1e-5
    assert found.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(found, linear(x.detach(), weight, layer.bias), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(x.grad, pull @ weight, atol=tolerance * 2, rtol=tolerance)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert layer.weight.grad is None


def test_a_weight_takes_four_bits_and_a_half_and_is_not_saved():
    frozen = Nf4Linear(torch.nn.Linear(128, 64))
    held = {name: t.numel() * t.element_size() for name, t in (*frozen.named_parameters(), *frozen.named_buffers())}
    assert held == {"bias": 64 * 4, "codes": 64 * 128 // 2, "scales": 64 * 128 // BLOCK * 4}
    assert set(frozen.state_dict()) == {"bias"}


def test_a_weight_of_zeros_stays_one():
    layer = torch.nn.Linear(64, 3, bias=False)
    torch.nn.init.zeros_(layer.weight)
    assert not Nf4Linear(layer).dequantized(torch.float32).any()


def test_only_plain_frozen_layers_of_the_body_are_replaced(small_model, pack):
    model = small_model("llama").requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    with torch.no_grad():
        exact = CausalLM(model).losses(*pack)
    expected = rounded(model.model.layers[1].mlp.up_proj.weight)
    count = replace_frozen(model.model, Nf4Linear)
    kinds = [type(m) for m in model.model.modules() if type(m) in (torch.nn.Linear, Nf4Linear)]
    assert kinds.count(torch.nn.Linear) == 1
    assert kinds.count(Nf4Linear) == count == 7 * len(model.model.layers) - 1
    assert type(model.lm_head) is torch.nn.Linear
    torch.testing.assert_close(model.model.layers[1].mlp.up_proj.dequantized(torch.float32), expected)
    assert replace_frozen(model.model, Nf4Linear) == 0
    causal_lm = CausalLM(model)
    assert causal_lm.is_packed
    with torch.no_grad():
        quantized = causal_lm.losses(*pack)
    assert 0.01 < (quantized - exact).abs().mean() < 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gpu_rounds_as_the_cpu_does(shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    frozen = Nf4Linear(layer, device="cuda")
    assert {t.device.type for t in frozen.buffers()} == {"cuda"}
    torch.testing.assert_close(frozen.dequantized(torch.float32).cpu(), rounded(layer.weight), atol=1e-7, rtol=1e-6)
    x = torch.randn(4, shape[1], device="cuda")
    torch.testing.assert_close(frozen(x).cpu(), x.cpu() @ rounded(layer.weight).T, atol=1e-4, rtol=1e-4)


def test_without_bitsandbytes_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingExtraError, match=r"'bitsandbytes': pip install 'tokenclean\[quantization\]'"):
        Nf4Linear(torch.nn.Linear(8, 8))
