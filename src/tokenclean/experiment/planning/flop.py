"""Useful floating-point operations of a pass and of a training, counted from the model's shape and the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenclean.experiment.planning.memory import model_without_content
from tokenclean.recipe import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class ModelSize:
    """``body``: parameters of the layers; ``head``: of the output layer; ``total``: stored (tied weights once);
    ``lora``: trained by the recipe's LoRA; ``attention``: layers × hidden size."""

    body: int
    head: int
    total: int
    lora: int
    attention: int


def model_size(config: PreTrainedConfig, settings: TrainingSettings) -> ModelSize:
    """Count parameters on the meta device, where no weight takes memory."""
    model = model_without_content(config)
    layer = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    head = layer.weight.numel()
    total = sum(p.numel() for p in model.parameters())
    is_tied = layer.weight is embedding
    body = total - embedding.numel() - (0 if is_tied else head)
    targets = settings.lora.target_modules
    lora = sum(
        settings.lora.rank * (m.in_features + m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
        and m is not layer
        and (targets == "all-linear" or name.split(".")[-1] in targets)
    )
    text = config.get_text_config()
    return ModelSize(body, head, total, lora, text.num_hidden_layers * text.hidden_size)


def scoring_flop(size: ModelSize, lengths: np.ndarray, responses: np.ndarray) -> float:
    """Of a pass over rows of so many tokens, (N,), losses at so many of them, (N,): 2 FLOP a parameter and token, the
    head on response tokens only, causal attention 2·layers·hidden·L² a row."""
    attention = 2.0 * size.attention * float(np.square(lengths.astype(np.float64)).sum())
    return 2.0 * size.body * float(lengths.sum()) + 2.0 * size.head * float(responses.sum()) + attention


def training_flop(size: ModelSize, settings: TrainingSettings, lengths: np.ndarray, selected: np.ndarray) -> float:
    """Of one epoch over rows of so many tokens, (N,), so many of them trained, (N,)."""
    is_lora = settings.method == "lora"
    backward = 1.0 if is_lora else 2.0
    flop = scoring_flop(size, lengths, selected) * (1 + backward) + 2 * size.head * float(selected.sum())
    return flop + (6 * size.lora * float(lengths.sum()) if is_lora else 0)
