"""A small model and weighted rows, and what one optimizer step of tokenclean's own makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from trainer_step import StepResult, gradients_of
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.training.train_step import TrainingStep

LENGTHS = (23, 9, 12, 40, 17, 2, 31, 14, 8)


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> PreTrainedTokenizerBase:
    """Padding is EOS, as in many a script."""
    return AutoTokenizer.from_pretrained(tiny_model_folder, pad_token="</s>")


@pytest.fixture
def make_model(tiny_model_folder: Path) -> Callable[[], PreTrainedModel]:
    """A function that loads the tiny model with weights so large that attention is far from uniform."""

    def make() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5)
        return model

    return make


@pytest.fixture
def weighted_rows() -> tuple[Ragged, Ragged]:
    """Ids and float weights from 0.05 to 2: row 2 has none, row 5 its last token alone; EOS is among the ids."""
    generator = np.random.default_rng(7)
    ids = [np.append(generator.integers(1, 600, length - 1), 0) for length in LENGTHS]
    weights = []
    for number, length in enumerate(LENGTHS):
        values = generator.uniform(0.05, 2, length) * (generator.random(length) < 0.5)
        values[0], values[-1] = 0, 0.5
        weights.append(np.zeros(length) if number == 2 else values)
    return Ragged.from_rows(ids, np.int64), Ragged.from_rows(weights, np.float32)


@pytest.fixture
def own_step(make_model: Callable[[], PreTrainedModel]) -> Callable[[Ragged, Ragged], StepResult]:
    """A function that runs tokenclean's own step over all rows of ids and weights."""

    def run(input_ids: Ragged, weights: Ragged) -> StepResult:
        model = make_model()
        settings = TrainingSettings(method="full", precision="exact")
        loss = TrainingStep(model, settings)(input_ids, weights, range(len(input_ids)))
        return StepResult(loss, gradients_of(model))

    return run
