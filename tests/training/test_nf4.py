"""LoRA on a base whose linear layers are held in NF4 while training: what is computed, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_llama import all_losses, random_rows, small_llama, weights_from
from transformers import GPT2Config, GPT2LMHeadModel

from tokenclean.errors import TrainingError
from tokenclean.models.frozen_linear import Nf4Linear
from tokenclean.models.loading.load import ModelSource, load_model
from tokenclean.recipe import LoraSettings, TrainingSettings
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.fine_tune import train, training_inputs
from tokenclean.training.train_step import TrainingStep

INPUT_IDS = random_rows([12, 7, 20, 5, 9, 16, 3, 11, 8, 14, 6])
WEIGHTS = weights_from(INPUT_IDS, share=0.8)
ROWS = range(len(INPUT_IDS))


def settings_of(**values: Any) -> TrainingSettings:
    quick = {"lora": LoraSettings(rank=4, alpha=8, dropout=0), "learning_rate": 1e-2, "warmup_ratio": 0.0}
    return TrainingSettings(**(quick | {"precision": "exact", "quantization": "nf4", "batch_size": 4} | values))


def round_linear_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Give the base's linear layers, without the head, the weights that NF4 makes of them, in float32."""
    with torch.no_grad():
        for layer in model.model.layers.modules():
            if type(layer) is torch.nn.Linear:
                layer.weight.copy_(Nf4Linear(layer).dequantized(torch.float32))
    return model


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    wrapped = add_fresh_lora(model, settings_of().lora, None)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return wrapped


def selected_loss(model: torch.nn.Module) -> float:
    """Σ w ℓ / Σ w of all rows, by the definition."""
    weight = np.concatenate([weights[1:] for weights in WEIGHTS])
    return float((weight * all_losses(model, INPUT_IDS).double().numpy()).sum() / weight.sum())


def trained_part(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_rounded_base(activation_checkpointing):
    results = []
    for base, quantization in ((small_llama(), "nf4"), (round_linear_layers(small_llama()), "none")):
        model = with_lora(base)
        values = {"quantization": quantization, "activation_checkpointing": activation_checkpointing}
        loss = TrainingStep(model, settings_of(**values))(INPUT_IDS, WEIGHTS, ROWS)
        results.append((loss, trained_part(model)))
    (found, gradients), (expected, expected_gradients) = results
    assert found == pytest.approx(expected, abs=1e-5)
    assert found != pytest.approx(selected_loss(with_lora(small_llama())), abs=1e-2)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("precision", ["exact", "safe", "fast", "mixed"])
def test_only_the_bases_linear_layers_are_quantized(precision, monkeypatch):
    monkeypatch.setattr("tokenclean.models.device.cpu_multiplies_bf16", lambda: True)
    step = TrainingStep(with_lora(small_llama()), settings_of(precision=precision))
    lm = step.causal_lm.lm
    assert step.causal_lm.is_packed
    quantized = {name for name, module in lm.named_modules() if isinstance(module, Nf4Linear)}
    assert len(quantized) == 2 * 7
    assert all(name.endswith(".base_layer") for name in quantized)
    assert {p.dtype for p in lm.parameters()} == {torch.float32}  # norms, embeddings, head, adapters
    assert not any(name.partition(".base_layer")[0] + ".base_layer" in quantized for name, _ in lm.named_parameters())
    assert not any("codes" in name or "scales" in name for name in lm.state_dict())


@pytest.mark.parametrize("precision", ["exact", "safe", "fast", "mixed"])
def test_the_loss_goes_down_and_the_adapter_stands_on_the_base_as_it_is(precision, base_folder, tmp_path, hashes_of):
    before = hashes_of(base_folder)
    settings = settings_of(precision=precision, epochs=8)
    result = train(ModelSource(str(base_folder)), INPUT_IDS, WEIGHTS, settings, tmp_path / "out", seed=0)
    assert np.mean(result.losses[-3:]) < np.mean(result.losses[:3]) - 0.5
    assert hashes_of(base_folder) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "journal.jsonl",
    ]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base_folder)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in saved)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    plain = PeftModel.from_pretrained(load_model(str(base_folder)), str(tmp_path / "out")).eval()
    assert selected_loss(plain) < selected_loss(load_model(str(base_folder))) - 0.5


def test_the_first_loss_is_that_of_the_rounded_base(base_folder, tmp_path):
    source, settings = ModelSource(str(base_folder)), settings_of(batch_size=100)
    result = train(source, INPUT_IDS, WEIGHTS, settings, tmp_path / "out", seed=0)
    expected = selected_loss(round_linear_layers(load_model(source)))
    assert result.losses == (pytest.approx(expected, abs=1e-4),)
    assert expected != pytest.approx(selected_loss(load_model(source)), abs=1e-2)


def test_another_quantization_is_another_training_and_none_the_same_as_ever():
    inputs = {
        quantization: training_inputs(
            "base", INPUT_IDS, WEIGHTS, settings_of(quantization=quantization), seed=0, device="cpu"
        )
        for quantization in ("none", "nf4")
    }
    assert inputs["nf4"]["settings"].pop("quantization") == "nf4"
    assert inputs["nf4"] == inputs["none"]  # whose key is what it was before there was the option


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_model_without_a_plain_linear_layer_is_refused():
    config = GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2)
    model = add_fresh_lora(GPT2LMHeadModel(config), LoraSettings(rank=2, target_modules=["c_attn"]), None)
    with pytest.raises(TrainingError, match="GPT2Model has no plain linear layer to hold in nf4; set it to none"):
        TrainingStep(model, settings_of())


def test_what_is_read_of_the_base_folder_is_scored_as_it_is(base_folder: Path, tmp_path: Path):
    """A training leaves no quantized layer behind in what is loaded after it."""
    before = all_losses(load_model(str(base_folder)), INPUT_IDS)
    train(ModelSource(str(base_folder)), INPUT_IDS, WEIGHTS, settings_of(), tmp_path / "out", seed=0)
    assert torch.equal(all_losses(load_model(str(base_folder)), INPUT_IDS), before)
