"""The parts of a causal LM: the transformers model itself, its body below the output layer, its sliding windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from tokenclean.errors import ModelError


def lm_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers causal LM itself, which may be inside a PEFT model. Raises ModelError for any other model."""
    if isinstance(model, PreTrainedModel):
        return model
    from peft import PeftModel

    if isinstance(model, PeftModel) and isinstance(lm := model.get_base_model(), PreTrainedModel):
        return lm
    raise ModelError(f"expected a transformers causal LM or a PEFT model around one, found {type(model).__name__}")


def body_of(model: torch.nn.Module) -> torch.nn.Module:
    """The part of a causal LM, or of the PEFT model around one, that is below its output layer."""
    lm = lm_of(model)
    body = lm.base_model
    # Llama 4's text model has another prefix and is its own ``base_model``.
    return dict(lm.named_children()).get("model", body) if body is lm else body


def smallest_window(lm: PreTrainedModel, longest_row: int) -> int:
    """The smallest sliding window that a row of so many tokens reaches beyond; 0 without one."""
    windows = (getattr(lm.config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((int(w) for w in windows if w and w < longest_row), default=0)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Run a block in eval mode; afterwards each module is in its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
