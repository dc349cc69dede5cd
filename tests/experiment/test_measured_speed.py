"""The speed that a plan reckons with is measured on two layers of the model's shape."""

from __future__ import annotations

import numpy as np
import pytest
from test_runs import recipe_of
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from tokenclean.experiment.planning import measured_speed
from tokenclean.experiment.planning.dry_run import RecordedPass, RecordedTraining
from tokenclean.experiment.planning.flop import model_size, scoring_flop, training_flop
from tokenclean.experiment.planning.measured_speed import measure_speed
from tokenclean.recipe import TrainingSettings
from tokenclean.training.step_plan import plan_steps

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "windowed and full layers": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=16),
    "a window": MistralConfig(**SHAPE, sliding_window=16),
    "biases": Qwen2Config(**SHAPE),
    "a large vocabulary": LlamaConfig(**{**SHAPE, "vocab_size": 70_000, "pad_token_id": 69_999}),
}


@pytest.fixture
def recipe(small_pool, tiny_model_folder, tmp_path):
    return recipe_of(small_pool, tiny_model_folder, tmp_path)


def recorded(recipe, *, rows: int = 20):
    random = np.random.default_rng(0)
    lengths = random.integers(20, 60, size=rows)
    targets = lengths // 2
    steps = plan_steps(rows, recipe.training)
    return [
        RecordedPass("training rows", "base", lengths, targets, recipe.scoring),
        RecordedTraining("full_tokens", lengths, targets, steps, 0),
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_layers_of_any_kind_are_measured(recipe, name):
    speed = measure_speed(CONFIGS[name], recipe, recorded(recipe))
    assert speed.scoring > 0
    assert speed.training > 0


def test_the_configuration_stays_as_it_was(recipe):
    config = CONFIGS["windowed and full layers"]
    measure_speed(config, recipe, recorded(recipe))
    assert config.num_hidden_layers == len(config.layer_types) == 6


def test_speed_is_flop_of_the_measured_rows_by_their_time(recipe, monkeypatch):
    """All rows fit: those of two of six layers with a third of the targets; the step takes one batch of them."""
    monkeypatch.setattr(measured_speed, "_median_seconds", lambda work: 2.0)
    config, (one_pass, training) = CONFIGS["llama"], recorded(recipe)
    speed = measure_speed(config, recipe, [one_pass, training])
    few = LlamaConfig(**{**SHAPE, "num_hidden_layers": 2})
    size, third = model_size(few, recipe.training), np.round(one_pass.responses / 3)
    assert speed.scoring == scoring_flop(size, one_pass.lengths, third) / 2
    assert training.steps.batch_size < len(training.lengths)
    order = np.random.default_rng(0).permutation(len(third))[: training.steps.batch_size]
    assert speed.training == training_flop(size, recipe.training, training.lengths[order], third[order]) / 2


def test_long_rows_are_measured_by_as_many_as_a_second_allows(recipe, monkeypatch):
    monkeypatch.setattr(measured_speed, "_MOST_FLOP", {"cpu": 1.0})
    seen = []
    monkeypatch.setattr(measured_speed, "_median_seconds", lambda work: seen.append(work()) or 1.0)
    assert measure_speed(CONFIGS["llama"], recipe, recorded(recipe)).scoring > 0


def test_without_a_training_one_speed_is_measured(recipe):
    speed = measure_speed(CONFIGS["llama"], recipe, recorded(recipe)[:1])
    assert speed.scoring == speed.training


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config)
    size = model_size(config, TrainingSettings())
    assert size.total == sum(p.numel() for p in model.parameters())
    assert size.head == config.vocab_size * 32
    assert size.body == sum(p.numel() for p in model.model.layers.parameters()) + 32  # and the last norm
