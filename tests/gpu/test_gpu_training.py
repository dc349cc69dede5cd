"""A training step on a GPU against one on a CPU, and what memory that runs out does to it."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.train_step import TrainingStep

VOCABULARY = 20_000
LENGTHS = [230, 90, 11, 400, 170, 20, 310, 120]


def batch() -> tuple[Ragged, Ragged]:
    generator = np.random.default_rng(0)
    ids = Ragged.from_rows([generator.integers(3, VOCABULARY, n) for n in LENGTHS], np.int64)
    values = generator.uniform(0, 2, len(ids.values)) * (generator.random(len(ids.values)) < 0.5)
    values[ids.offsets[:-1]] = 0
    return ids, ids.with_values(values)


def step_on(device: str, **settings) -> tuple[TrainingStep, torch.nn.Module]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    chosen = TrainingSettings.model_validate({"lora": {"rank": 8, "dropout": 0.0}} | settings)
    model = add_fresh_lora(LlamaForCausalLM(config), chosen.lora, None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return TrainingStep(model, chosen, device=device, longest_row=max(LENGTHS)), model


@cache
def on_a_cpu() -> tuple[float, torch.Tensor]:
    return taken("cpu", precision="exact")


def taken(device: str, **settings) -> tuple[float, torch.Tensor]:
    """Loss and all gradients in one."""
    step, model = step_on(device, **settings)
    ids, weights = batch()
    loss = step(ids, weights, range(len(LENGTHS)))
    return loss, torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"precision": "exact"}, 1e-4),
        ({"precision": "exact", "activation_checkpointing": True}, 1e-4),
        ({"precision": "safe"}, 0.02),
        ({"precision": "mixed"}, 0.05),
        ({"precision": "fast"}, 0.08),
        ({"precision": "mixed", "activation_checkpointing": True}, 0.05),
        ({"precision": "mixed", "quantization": "nf4"}, 0.5),
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_a_cpu(settings, most):
    if settings.get("quantization"):
        pytest.importorskip("bitsandbytes")
    expected_loss, expected = on_a_cpu()
    loss, gradient = taken("cuda", **settings)
    assert abs(loss - expected_loss) < most
    assert float((gradient - expected).norm() / expected.norm()) < most


def test_memory_that_runs_out_halves_the_packs_and_changes_nothing(caplog):
    expected_loss, expected = taken("cuda", precision="exact")
    step, model = step_on("cuda", precision="exact", pack_tokens=2048)
    ids, weights = batch()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    in_use = torch.cuda.memory_reserved()
    # Enough for packs of some hundred tokens, too little for one of all 1,351.
    torch.cuda.set_per_process_memory_fraction((in_use + 48 * 2**20) / total)
    try:
        with caplog.at_level(logging.WARNING, logger="tokenclean"):
            loss = step(ids, weights, range(len(LENGTHS)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory; continuing in packs" in caplog.text
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    assert abs(loss - expected_loss) < 1e-4
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4
