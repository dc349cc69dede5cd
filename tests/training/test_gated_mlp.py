from __future__ import annotations

import pytest
import torch
from small_llama import small_llama

from tokenclean.training.lean_layers import _Gated, slim_gated_mlps

IDS = torch.randint(3, 61, (1, 12), generator=torch.Generator().manual_seed(0))


def test_the_derivatives_are_those_of_the_formula():
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(_Gated.apply(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(_Gated.apply, (gate, up))


def kept_for_backward(model) -> tuple[torch.Tensor, int]:
    """Loss, and elements of the distinct tensors that are kept beside the weights."""
    kept: dict[int, torch.Tensor] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=IDS).logits.square().mean()
    return loss, sum(t.numel() for t in kept.values())


def test_a_model_computes_the_same_and_keeps_one_tensor_less_a_layer():
    plain, slim = small_llama().train(), small_llama().train()
    assert slim_gated_mlps(slim) == 2
    expected, kept_plain = kept_for_backward(plain)
    loss, kept_slim = kept_for_backward(slim)
    assert kept_plain - kept_slim == 2 * IDS.numel() * 48
    expected.backward(), loss.backward()
    torch.testing.assert_close(loss, expected)
    gradients = {n: p.grad for n, p in plain.named_parameters()}
    for name, parameter in slim.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("what", ["gelu", "another formula"])
def test_what_computes_something_else_is_left_as_it_is(what):
    model = small_llama()
    for layer in model.model.layers:
        if what == "gelu":
            layer.mlp.act_fn = torch.nn.GELU()
        else:
            layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.down_proj(mlp.up_proj(x))
    assert slim_gated_mlps(model) == 0
