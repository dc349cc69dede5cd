"""The peak memory that a plan foretells against that of a process which does what it foretells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import FalconConfig, LlamaConfig, LlamaForCausalLM

from tokenclean.experiment.planning.memory import training_memory
from tokenclean.recipe import LoraSettings, TrainingSettings

PROGRAM = Path(__file__).with_name("memory_program.py")


def llama(vocabulary: int, hidden: int, intermediate: int, *, layers: int, heads: int, key_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "model"
    LlamaForCausalLM(llama(8192, 768, 2048, layers=8, heads=12, key_heads=4)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    ["score exact", "score safe", "train lora exact", "train lora mixed", "train full safe", "train checkpointed"],
)
def test_a_pass_takes_what_was_foretold(what, model_folder):
    command = [sys.executable, str(PROGRAM), str(model_folder), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.splitlines()[-1])
    assert 0.75 < (reported["process"] + reported["foretold"]) / reported["peak"] < 1.25, reported


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return llama(1000, 64, 160, layers=3, heads=4, key_heads=2)


def kept(config, tokens: int = 4096, **settings) -> int:
    """On a GPU, whose pack has no heap's holes."""
    settings.setdefault("lora", LoraSettings(rank=8))
    return training_memory(config, TrainingSettings(precision="mixed", **settings), "cuda", tokens).pack


def test_what_a_pack_keeps_grows_with_its_tokens_and_shrinks_with_checkpoints(config):
    assert kept(config) - kept(config, 2048) == pytest.approx(kept(config, 6144) - kept(config), rel=1e-3)
    assert kept(config, activation_checkpointing=True) < 0.7 * kept(config)
    one_mask_each = LoraSettings(rank=8, shared_dropout=False)
    assert kept(config, lora=one_mask_each) > 1.2 * kept(config) > kept(config, lora=LoraSettings(rank=8, dropout=0))


def test_a_layer_keeps_what_its_formula_needs(config):
    """A token's by hand: two residuals, dropped inputs, their masks, q, k, v, gate, up, the LoRAs' inner products."""
    h, i, kv, r = 64, 160, 32, 8
    floats = 2 * h + (2 * h + h + i) + (2 * h + h + i) / 4 + (h + 2 * kv) + 2 * i + 7 * r
    of_three_layers_and_the_gradients_of_one = 4 * floats * (3 + 1)
    assert kept(config, 8192) - kept(config) == pytest.approx(4096 * of_three_layers_and_the_gradients_of_one, rel=0.02)


def test_the_state_is_what_is_trained_beside_gradient_and_moments(config):
    lora = 8 * 3 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 160) * 3)
    settings = TrainingSettings(precision="mixed", lora=LoraSettings(rank=8))
    assert training_memory(config, settings, "cpu", 64).state == 16 * lora
    full = training_memory(config, TrainingSettings(method="full", precision="safe"), "cpu", 64)
    assert full.weights + full.state == 4 * full.weights


def test_a_model_that_does_not_run_without_content_is_estimated_and_told(caplog):
    config = FalconConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    reported = training_memory(config, TrainingSettings(lora=LoraSettings(rank=4)), "cuda", 500)
    assert "what FalconForCausalLM keeps" in caplog.text
    assert "does not run on the meta device" in caplog.text
    assert reported.pack > 4 * 34 * 2 * 64 * 500
