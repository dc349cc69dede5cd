from __future__ import annotations

import dataclasses
import logging
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel

from tokenclean.errors import ModelError
from tokenclean.models import head
from tokenclean.models.attention import segments as attention
from tokenclean.models.attention.features import Features
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.head import Head, head_of
from tokenclean.models.kernels import cpu as cpu_kernels
from tokenclean.models.model_parts import evaluating

PACKED = [
    "llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "neox", "cohere", "granite", "gpt2",
    "mixtral",
]  # fmt: skip
UNPACKED = ["mamba", "falcon", "gpt-oss", "llama4"]
HEADLESS = ["bert", "electra"]

SOFTCAP, WINDOW = "softcap", "window"


pytestmark = [
    pytest.mark.usefixtures("products"),
    pytest.mark.parametrize("products", ["block products", "torch's products"], indirect=True),
]


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def ignoring(monkeypatch, feature: str) -> None:
    """Switch a feature of the packed attention off, as if it had been overlooked."""
    attend, kernel = attention._attend, cpu_kernels.segment_attention
    off = {feature: None}

    def by_kernel(*given, features, **options):
        return kernel(*given, features=features._replace(**off), **options)

    monkeypatch.setattr(attention, "_attend", lambda *given: attend(*given[:-1], given[-1]._replace(**off)))
    monkeypatch.setattr(cpu_kernels, "segment_attention", by_kernel)


@pytest.mark.parametrize("family", PACKED)
def test_a_packed_pass_gives_the_losses_of_the_plain_forward(family, small_model, plain_losses, pack, products):
    model = small_model(family)
    causal_lm = CausalLM(model)
    assert causal_lm.is_packed
    attention_by = "block products" if products == "block products" else "rectangles, SDPA"
    assert causal_lm.kernel == f"attention by {attention_by}; chunked head; {products}"
    with torch.no_grad():
        losses = causal_lm.losses(*pack)
        expected = plain_losses(model, *pack[:2])
    assert losses.dtype == torch.float32
    assert expected.std() > 0.1
    assert furthest(losses, expected) < 1e-4


@pytest.mark.parametrize("family", UNPACKED + HEADLESS)
def test_a_model_without_packed_path_says_so_and_stays_exact(family, small_model, plain_losses, pack, caplog):
    model = small_model(family)
    with caplog.at_level(logging.WARNING, logger="tokenclean"):
        causal_lm = CausalLM(model)
    [record] = [r for r in caplog.records if r.name.startswith("tokenclean")]
    expected_text = "without packing" if family in UNPACKED else "its own output layer is used"
    assert expected_text in record.getMessage()
    assert type(model).__name__ in record.getMessage()
    assert not causal_lm.is_packed
    assert causal_lm.kernel.startswith("one conversation a pass")
    with torch.no_grad():
        assert furthest(causal_lm.losses(*pack), plain_losses(model, *pack[:2])) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "feature"),
    [("mistral", WINDOW), ("qwen2", WINDOW), ("gemma2", WINDOW), ("gemma2", SOFTCAP), ("gemma3", WINDOW)],
)
def test_an_overlooked_feature_shows_and_the_probe_refuses_it(family, feature, small_model, pack, monkeypatch):
    causal_lm = CausalLM(small_model(family))
    with torch.no_grad():
        losses = causal_lm.losses(*pack)
        ignoring(monkeypatch, feature)
        assert furthest(causal_lm.losses(*pack), losses) > 1e-2
    assert not CausalLM(small_model(family)).is_packed


@pytest.mark.slow
@pytest.mark.parametrize("family", PACKED)
def test_a_pass_that_mixes_conversations_shows(family, small_model, pack, monkeypatch):
    causal_lm = CausalLM(small_model(family))
    with torch.no_grad():
        losses = causal_lm.losses(*pack)
        lengths = [sum(pack[1])]
        assert furthest(causal_lm.losses(pack[0], lengths, pack[2]), losses) > 1e-2


def test_a_structure_is_probed_once_a_process(small_model, monkeypatch):
    probed = []
    passes = CausalLM._probe_passes
    monkeypatch.setattr(CausalLM, "_probe_passes", lambda self, window: (probed.append(window), passes(self, window)))
    monkeypatch.setattr("tokenclean.models.causal_lm._probed", {})
    first, again = CausalLM(small_model("llama")), CausalLM(small_model("llama"))
    assert len(probed) == 1
    assert again.is_packed
    assert again.kernel == first.kernel
    CausalLM(small_model("mistral", sliding_window=100), longest_row=90)
    assert CausalLM(small_model("mistral", sliding_window=100), longest_row=150).probed_window == 100
    assert probed == [0, 0, 100]
    patched = small_model("llama")
    patched.forward = patched.forward
    for _ in range(2):  # what the patch does cannot be seen
        assert CausalLM(patched).is_packed
    assert len(probed) == 5


def test_the_probe_reaches_beyond_the_window_of_longer_rows(small_model, monkeypatch):
    ignoring(monkeypatch, WINDOW)
    model = small_model("mistral", sliding_window=100)
    assert CausalLM(model, longest_row=90).is_packed  # no row is longer than the window: nothing to overlook
    assert not CausalLM(model, longest_row=150).is_packed


@pytest.mark.parametrize("length", [5, 16, 17, 40])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 16])
def test_segment_attention_is_softmax_over_the_visible_keys(length, softcap, window):
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, 2, length, 8, generator=generator) for _ in range(3))
    found = attention._attend(q, k, v, Features(0.7, 0.0, softcap, window))
    for t in range(length):
        seen = slice(0 if window is None else max(0, t + 1 - window), t + 1)
        logits = 0.7 * torch.einsum("hd,hsd->hs", q[0, :, t], k[0, :, seen])
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        expected = torch.einsum("hs,hsd->hd", logits.softmax(-1), v[0, :, seen])
        assert furthest(found[0, :, t], expected) < 1e-5


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
def test_head_knows_scale_and_softcap(family, small_model, plain_losses, pack, monkeypatch):
    model = small_model(family)
    found = head_of(model)
    expected = {"gemma2": (1.0, 3.0), "cohere": (0.5, None), "granite": (0.25, None)}[family]
    assert (found.scale, found.softcap) == expected
    causal_lm = CausalLM(model)
    plain = dataclasses.replace(found, scale=1.0, softcap=None)
    monkeypatch.setattr("tokenclean.models.causal_lm.head_of", lambda lm: plain)
    with torch.no_grad():
        assert furthest(causal_lm.losses(*pack), plain_losses(model, *pack[:2])) > 1e-2
    with torch.no_grad():
        causal_lm = CausalLM(model)
        assert causal_lm.kernel.startswith("one conversation a pass; the model's own head")
        assert furthest(causal_lm.losses(*pack), plain_losses(model, *pack[:2])) < 1e-4


def test_head_of_a_model_without_output_layer_is_refused(small_model):
    with pytest.raises(ModelError, match="LlamaModel has no linear output layer"):
        head_of(LlamaModel(small_model("llama").config))


def test_head_agrees_with_its_formula_across_chunks(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_POSITIONS", 3)
    hidden, weight, bias = torch.randn(10, 4), torch.randn(7, 4), torch.randn(7)
    targets = torch.arange(10) % 7
    logits = 1.5 * torch.tanh(0.25 * linear(hidden, weight, bias) / 1.5)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = Head(weight, bias, scale=0.25, softcap=1.5).losses(hidden, targets)
    assert furthest(found, expected) < 1e-5
    assert Head(weight).losses(hidden[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "qwen2", "mamba", "bert"])
def test_gradients_equal_those_of_the_full_logits(family, small_model, plain_losses, pack, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_POSITIONS", 64)
    model = small_model(family)
    causal_lm = CausalLM(model)
    weights = torch.rand(len(pack[2]), generator=torch.Generator().manual_seed(2))
    (plain_losses(model, *pack[:2]) * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (causal_lm.losses(*pack) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert furthest(parameter.grad, expected[name]) < 1e-3 * (1e-3 + expected[name].abs().max()), name


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_leaves_the_gradients_exact(use_reentrant, small_model, pack):
    """The recomputation happens outside the packed block; it once mixed the conversations."""
    model = small_model("llama").train()
    causal_lm = CausalLM(model)
    causal_lm.losses(*pack).mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=use_reentrant)
    model.enable_input_require_grads()
    causal_lm.losses(*pack).mean().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert furthest(parameter.grad, gradient) < 1e-4 * (1e-3 + gradient.abs().max())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_lora_gets_the_naive_gradient_through_a_peft_model(family, small_model, plain_losses, pack):
    torch.manual_seed(3)
    peft_model = get_peft_model(
        small_model(family), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    causal_lm = CausalLM(peft_model)
    assert causal_lm.is_packed
    plain_losses(peft_model, *pack[:2]).mean().backward()
    expected = {n: p.grad.clone() for n, p in peft_model.named_parameters() if p.requires_grad}
    peft_model.zero_grad()
    causal_lm.losses(*pack).mean().backward()
    assert expected
    for name, gradient in expected.items():
        assert furthest(peft_model.get_parameter(name).grad, gradient) < 1e-3 * (1e-6 + gradient.abs().max()), name


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"trainable_token_indices": [4, 5]},
    ],
    ids=str,
)
def test_adapters_on_head_or_embeddings_stay_exact(options, small_model, plain_losses, pack):
    options = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **options}
    peft_model = get_peft_model(small_model("llama"), LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert furthest(CausalLM(peft_model).losses(*pack), plain_losses(peft_model, *pack[:2])) < 1e-4


def test_losses_of_chosen_positions_alone(small_model, pack):
    ids, lengths, positions = pack
    chosen = torch.arange(len(positions)) % 3 == 1
    for family in ("llama", "mamba"):
        causal_lm = CausalLM(small_model(family))
        with torch.no_grad():
            some = causal_lm.losses(ids, lengths, positions[chosen])
            assert furthest(some, causal_lm.losses(ids, lengths, positions)[chosen]) < 1e-5
            assert causal_lm.losses(ids, lengths, positions[:0]).shape == (0,)


def test_the_model_is_left_as_it_was(small_model, pack):
    model = small_model("llama").train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    implementation = model.config._attn_implementation
    causal_lm = CausalLM(model)
    causal_lm.losses(*pack)
    assert [m.training for m in model.modules()] == modes
    assert model.config._attn_implementation == implementation
    with pytest.raises(RuntimeError):
        causal_lm.losses(pack[0], [3, 4], pack[2])  # lengths that are not the input's
    assert model.config._attn_implementation == implementation
    with pytest.raises(RuntimeError), evaluating(model):
        model(input_ids=torch.zeros(1, 2, 3))
    assert [m.training for m in model.modules()] == modes


def test_what_is_no_causal_lm_is_refused():
    with pytest.raises(ModelError, match=r"expected a transformers causal LM.*found Linear"):
        CausalLM(torch.nn.Linear(2, 2))
