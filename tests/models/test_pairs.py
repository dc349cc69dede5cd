"""A base and an adapter in one pass: the base's bits unchanged, the difference more exact, and who can be a pair."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.kernels.cpu import has_bf16_kernels, linear, measures, missing_kernels, pack
from tokenclean.models.loading.load import ModelSource
from tokenclean.models.pairs import can_pair
from tokenclean.scoring.stored_losses import scores_in_pairs

needs_kernels = pytest.mark.skipif(missing_kernels() is not None, reason="no CPU kernels on this machine")
needs_bf16 = pytest.mark.skipif(not has_bf16_kernels(), reason="this processor has no bf16 instructions")
dtypes = pytest.mark.parametrize("as_bf16", [False, pytest.param(True, marks=needs_bf16)])
ADAPTER = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(tensor: torch.Tensor, as_bf16: bool) -> torch.Tensor:
    return (tensor.bfloat16() if as_bf16 else tensor).double()


@needs_kernels
@dtypes
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 140), st.integers(1, 90), st.integers(1, 200), st.booleans())
def test_the_second_product_is_the_first_plus_that_of_the_difference(as_bf16, rows, depth, columns, has_bias):
    x, change, weight = numbers(rows, depth), 0.01 * numbers(rows, depth, seed=3), numbers(columns, depth, seed=1)
    other, packed = x + change, pack(weight, as_bf16=as_bf16)
    bias = numbers(columns, seed=2) if has_bias else None
    found = linear(torch.cat([x, other]), packed, columns, bias, is_pair=True)
    assert torch.equal(found[:rows], linear(x, packed, columns, bias))
    factor = rounded(weight, as_bf16).T
    expected = rounded(x, as_bf16) @ factor + rounded(other - x, as_bf16) @ factor
    expected = expected if bias is None else expected + bias
    torch.testing.assert_close(found[rows:].double(), expected, atol=1e-4, rtol=1e-5)


@needs_kernels
@dtypes
@pytest.mark.parametrize(("scale", "softcap", "has_bias"), [(1.0, None, False), (0.25, None, True), (1.0, 4.0, True)])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 5), (100, 64), (300, 1000)])
def test_measures_of_a_pair(rows, vocabulary, scale, softcap, has_bias, as_bf16):
    hidden, weight = numbers(rows, 33), numbers(vocabulary, 33, seed=1)
    other = hidden + 0.05 * numbers(rows, 33, seed=4)
    bias = numbers(vocabulary, seed=2) if has_bias else None
    targets = torch.randint(0, vocabulary, (rows,), generator=torch.Generator().manual_seed(3))
    options = (pack(weight, as_bf16=as_bf16), targets, vocabulary, bias, scale, softcap)
    found = measures(torch.cat([hidden, other]), *options, is_pair=True)
    assert torch.equal(found[:, :rows], measures(hidden, *options))
    factor = rounded(weight, as_bf16).T
    logits = rounded(hidden, as_bf16) @ factor + rounded(other - hidden, as_bf16) @ factor
    logits = (logits if bias is None else logits + bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_shares = logits.log_softmax(-1)
    losses = cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found[0, rows:].double(), losses, atol=2e-5, rtol=0)
    entropies = -(log_shares.exp() * log_shares).sum(-1)
    torch.testing.assert_close(found[1, rows:].double(), entropies, atol=2e-5, rtol=0)
    assert torch.equal(found[2, rows:] == 1, logits.argmax(-1) == targets)
    torch.testing.assert_close(found[3, rows:].double(), log_shares.exp().square().sum(-1), atol=0, rtol=1e-4)


@needs_kernels
def test_a_pair_has_two_equal_halves():
    with pytest.raises(RuntimeError, match="as many rows"):
        linear(numbers(3, 8), pack(numbers(5, 8), as_bf16=False), 5, None, is_pair=True)


def llama(**options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, num_hidden_layers=2, **sizes, **options)).eval()


def losses(model, policy: str, *, in_pairs: bool = False) -> torch.Tensor:
    causal_lm = CausalLM(model)
    ids = torch.randint(0, 97, (60,), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([*range(1, 25), *range(26, 60)])
    with torch.no_grad(), causal_lm.precision(policy, in_pairs=in_pairs):
        return causal_lm.measures(ids, [25, 35], positions, ("loss",))["loss"].double()


@needs_bf16
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_what_rounding_does_to_the_base_cancels_in_the_score(targets):
    adapted = get_peft_model(llama(), LoraConfig(**ADAPTER | {"target_modules": targets}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.2)
    base, own = losses(adapted, "safe", in_pairs=True).chunk(2)
    assert torch.equal(base, losses(llama(), "safe"))
    score = losses(llama(), "exact") - losses(adapted, "exact")
    apart = losses(llama(), "safe") - losses(adapted, "safe")
    assert (base - own - score).abs().mean() < 0.5 * (apart - score).abs().mean()


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}],
    ids=str,
)
def test_other_adapters_are_no_pair(options):
    assert not can_pair(get_peft_model(llama(), LoraConfig(**ADAPTER | options)))


def test_plain_loras_are_a_pair_until_they_are_merged():
    assert not can_pair(llama())
    adapted = get_peft_model(llama(), LoraConfig(**ADAPTER))
    assert can_pair(adapted)
    adapted.merge_adapter()
    assert not can_pair(adapted)


@pytest.mark.parametrize("policy", ["exact", "safe"])
def test_with_gradient_there_are_no_pairs(policy):
    adapted = get_peft_model(llama(), LoraConfig(**ADAPTER))
    with pytest.raises(ValueError, match="without gradient"), CausalLM(adapted).precision(policy, in_pairs=True):
        pass


# --- by torch's own products, as on a GPU --------------------------------------------------------------------------


def losses_by_torch(model, *, in_pairs: bool = False) -> torch.Tensor:
    causal_lm, names = CausalLM(model), ("loss", "entropy", "is_top1", "collision")
    ids = torch.randint(0, 97, (700,), generator=torch.Generator().manual_seed(1))  # a head's chunk is shorter
    positions = torch.tensor([*range(1, 300), *range(301, 700)])
    with torch.no_grad(), causal_lm.precision("safe", with_kernels=False, in_pairs=in_pairs):
        found = causal_lm.measures(ids, [300, 400], positions, names)
    return torch.stack([found[name] for name in names]).double()


def round_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's products be those of a GPU under ``medium``: inputs rounded to ten bits, sums in float32."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.detach().contiguous().view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)

    def product(x, weight, bias=None):
        found = cut(x) @ cut(weight).T
        return found if bias is None else found + bias

    monkeypatch.setattr("torch.nn.functional.linear", product)
    monkeypatch.setattr("tokenclean.models.precision.linear", product)
    monkeypatch.setattr("tokenclean.models.head.linear", product)


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}], ids=str)
def test_without_rounding_a_pair_gives_the_losses_of_both(options):
    adapted = get_peft_model(llama(**options), LoraConfig(**ADAPTER))
    base, own = losses_by_torch(adapted, in_pairs=True).chunk(2, dim=1)
    torch.testing.assert_close(base[:2], losses_by_torch(llama(**options))[:2], atol=2e-5, rtol=0)
    torch.testing.assert_close(own[:2], losses_by_torch(adapted)[:2], atol=2e-5, rtol=0)
    assert torch.equal(base[2], losses_by_torch(llama(**options))[2])
    for side, model in ((base, llama(**options)), (own, adapted)):
        torch.testing.assert_close(side[3], losses_by_torch(model)[3], atol=0, rtol=1e-4)


def test_rounding_to_tf32_cancels_in_the_score(monkeypatch):
    adapted = get_peft_model(llama(), LoraConfig(**ADAPTER))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.2)
    score = in_double(llama()) - in_double(adapted)
    adapted.float()
    round_to_tf32(monkeypatch)
    base, own = losses_by_torch(adapted, in_pairs=True)[0].chunk(2)
    apart = losses_by_torch(llama())[0] - losses_by_torch(adapted)[0]
    assert (apart - score).abs().mean() > 1e-6
    assert (base - own - score).abs().mean() < 0.5 * (apart - score).abs().mean()


def in_double(model) -> torch.Tensor:
    """The losses of ``losses_by_torch`` by the model's plain float64 forward."""
    ids = torch.randint(0, 97, (700,), generator=torch.Generator().manual_seed(1))
    parts = ids.split([300, 400])
    with torch.no_grad():
        logits = [model.double()(input_ids=part[None]).logits[0, :-1] for part in parts]
    return cross_entropy(torch.cat(logits), torch.cat([part[1:] for part in parts]), reduction="none")


@pytest.mark.parametrize(
    ("written", "is_plain"),
    [
        ({}, True),
        ({"init_lora_weights": "gaussian"}, True),
        ({"init_lora_weights": "pissa"}, False),
        ({"use_dora": True}, False),
        ({"bias": "all"}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"peft_type": "IA3"}, False),
    ],
)
@needs_bf16
def test_an_adapter_is_scored_beside_its_base_where_it_leaves_it_as_it_is(written, is_plain, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    config = {"peft_type": "LORA", "bias": "none", "use_dora": False, "init_lora_weights": True, **written}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    source = ModelSource(str(base), str(adapter))
    assert scores_in_pairs("safe", "cpu", ModelSource(str(base)), source) is is_plain
    assert scores_in_pairs("safe", "cuda:0", ModelSource(str(base)), source) is is_plain
    for others in (("exact", "cpu", ModelSource(str(base))), ("fast", "cuda", ModelSource(str(base)))):
        assert not scores_in_pairs(*others, source)
    assert not scores_in_pairs("safe", "cpu", ModelSource(str(tmp_path)), source)
    assert not scores_in_pairs("safe", "cpu", ModelSource(str(base)), ModelSource(str(base)))
