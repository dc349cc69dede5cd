from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear

from tokenclean.models import precision
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.kernels.cpu import has_bf16_kernels, pack
from tokenclean.models.kernels.cpu import linear as packed_linear
from tokenclean.models.precision import PRECISIONS, precision_policy, uses_kernels

pytestmark = [
    pytest.mark.usefixtures("bf16_products"),
    pytest.mark.parametrize("products", ["block products", "torch's products"], indirect=True),
]


@pytest.fixture
def bf16_products(products):
    if products == "block products" and not has_bf16_kernels():
        pytest.skip("this processor has no bf16 instructions")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 8)).requires_grad_(False)


def rounded(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What ``fast`` computes, from the weight as it is now."""
    if uses_kernels(layer) and not torch.is_grad_enabled():
        return packed_linear(x, pack(layer[0].weight, as_bf16=True), 8, layer[0].bias)
    return linear(x.to(torch.bfloat16), layer[0].weight.to(torch.bfloat16)).float() + layer[0].bias


def watch_weights(monkeypatch) -> dict[int, torch.Tensor]:
    """The weight tensors that are multiplied, by address; filled as they come."""
    seen: dict[int, torch.Tensor] = {}
    multiply = precision.matmul

    def watched(x, weight):
        seen.setdefault(weight.data_ptr(), weight)  # kept, so that no address comes twice
        return multiply(x, weight)

    monkeypatch.setattr(precision, "matmul", watched)
    return seen


def test_fast_rounds_a_frozen_weight_once_a_block(layer, monkeypatch):
    seen = watch_weights(monkeypatch)
    x = torch.randn(3, 16)
    with precision_policy(layer, "fast"):
        results = [layer(x) for _ in range(5)]
    assert len(seen) == 1
    assert all(torch.equal(result, rounded(layer, x)) for result in results)
    assert results[0].dtype == torch.float32
    assert not torch.equal(results[0], layer(x))


def by_add(layer):
    layer[0].weight.add_(1.0)


def by_load_state_dict(layer):
    state = {name: tensor + 1.0 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state)


def by_assignment(layer):
    state = {name: tensor + 1.0 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def by_optimizer(layer, **options):
    layer.requires_grad_(True)
    layer[0].weight.grad = torch.ones_like(layer[0].weight)
    torch.optim.AdamW(layer.parameters(), lr=0.5, **options).step()
    layer.requires_grad_(False)


def by_fused_optimizer(layer):
    by_optimizer(layer, fused=True)


def by_data(layer):
    layer[0].weight.data += 1.0


TRACED = [by_add, by_load_state_dict, by_assignment, by_optimizer]


@pytest.mark.parametrize("change", TRACED)
def test_a_changed_weight_is_rounded_anew_within_the_block(change, layer):
    x = torch.randn(3, 16)
    with torch.no_grad(), precision_policy(layer, "fast"):
        before = layer(x)
        change(layer)
        assert torch.equal(layer(x), rounded(layer, x))
        assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("change", [*TRACED, by_fused_optimizer, by_data])
def test_no_copy_outlives_its_block(change, layer):
    """Fused AdamW (transformers' default) and ``.data`` leave a tensor's version counter as it was."""
    x = torch.randn(3, 16)
    with torch.no_grad():
        with precision_policy(layer, "fast"):
            before = layer(x)
        change(layer)
        with precision_policy(layer, "fast"):
            assert torch.equal(layer(x), rounded(layer, x))
            assert not torch.equal(layer(x), before)


def test_fast_sees_adapters_merged_between_blocks(small_model, pack):
    torch.manual_seed(1)
    options = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    peft_model = get_peft_model(small_model("llama"), options).eval()
    causal_lm = CausalLM(peft_model)
    with torch.no_grad():
        with causal_lm.precision("fast"):
            unmerged = causal_lm.losses(*pack)
        peft_model.merge_adapter()
        with causal_lm.precision("fast"):
            merged = causal_lm.losses(*pack)
        exact = causal_lm.losses(*pack)
    assert (unmerged - exact).abs().mean() < 0.05
    assert (merged - exact).abs().mean() < 0.05


@pytest.mark.parametrize("policy", PRECISIONS)
def test_everything_is_restored_even_after_an_exception(policy, layer):
    x = torch.randn(3, 16)
    expected = layer(x)
    torch.set_float32_matmul_precision("high")
    try:
        with precision_policy(layer, policy):
            inside = torch.get_float32_matmul_precision()
        assert inside == ("highest" if policy == "exact" else "medium")
        with pytest.raises(RuntimeError), precision_policy(layer, policy):
            layer(torch.randn(3, 7))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert "forward" not in vars(layer[0])
    assert torch.equal(layer(x), expected)


def test_blocks_can_be_nested_and_a_hooked_forward_comes_back(layer):
    x = torch.randn(3, 16)
    expected = layer(x)

    def hooked(x):  # as accelerate's hooks replace it
        return 2 * expected

    layer[0].forward = hooked
    with precision_policy(layer, "fast"):
        with precision_policy(layer, "fast"):
            assert torch.equal(layer(x), rounded(layer, x))
        assert torch.equal(layer(x), rounded(layer, x))
    assert layer[0].forward is hooked


def test_an_unknown_policy_is_refused_before_anything_changes(layer):
    with pytest.raises(ValueError, match="unknown precision 'bf16'; known: exact, safe, fast"):  # noqa: SIM117
        with precision_policy(layer, "bf16"):
            pass
    assert torch.get_float32_matmul_precision() == "highest"


def test_exact_is_bit_equal_to_no_policy(small_model, pack):
    causal_lm = CausalLM(small_model("llama"))
    with torch.no_grad():
        expected = causal_lm.losses(*pack)
        with causal_lm.precision("exact"):
            assert torch.equal(causal_lm.losses(*pack), expected)


@pytest.mark.parametrize("policy", ["safe", "fast"])
@pytest.mark.parametrize("family", ["llama-tied", "gemma2"])
def test_safe_and_fast_stay_close_to_exact(policy, family, small_model, pack):
    causal_lm = CausalLM(small_model(family))
    with torch.no_grad():
        exact = causal_lm.losses(*pack)
        with causal_lm.precision(policy):
            losses = causal_lm.losses(*pack)
    assert losses.dtype == torch.float32
    assert (losses - exact).abs().mean() < 0.03 < exact.std()


@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama4"])
def test_fast_never_rounds_the_head(family, small_model):
    model = small_model(family)
    causal_lm = CausalLM(model)
    with causal_lm.precision("fast"):
        assert "forward" not in vars(model.lm_head)
        assert any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("policy", ["safe", "fast"])
def test_lora_weights_get_float32_gradients_close_to_the_exact_ones(policy, small_model, pack):
    torch.manual_seed(2)
    model = get_peft_model(
        small_model("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    ).train()
    causal_lm = CausalLM(model)
    gradients = []
    for p in ("exact", policy):
        model.zero_grad()
        with causal_lm.precision(p):
            causal_lm.losses(*pack).mean().backward()
        gradients.append({n: w.grad.clone() for n, w in model.named_parameters() if w.requires_grad})
    assert len(gradients[0]) == 2 * 7 * 3
    for name, exact in gradients[0].items():
        found = gradients[1][name]
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 0.1 * exact.norm(), name
        assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.99, name


def test_fast_trains_on_the_weights_of_each_step(small_model, pack):
    """A trained weight's rounding is never cached, whatever optimizer moves it."""
    model = get_peft_model(small_model("llama"), LoraConfig(r=4, target_modules="all-linear")).train()
    causal_lm = CausalLM(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = copy.deepcopy(trained)
    optimizer = torch.optim.AdamW(trained, lr=5e-3, fused=True)
    found = []
    with causal_lm.precision("fast"):
        for _ in range(12):
            loss = causal_lm.losses(*pack).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
    assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    assert found[-1] < found[0] - 0.1
