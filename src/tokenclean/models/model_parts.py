"""The parts of a causal LM: the transformers model itself, its body below the output layer, its layers and windows.

And the probe of a faster way to compute losses, which is used only where it reproduces the plain forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from tokenclean.errors import ModelError

PROBE_LENGTHS: tuple[int, ...] = (24, 9, 40)

_TOLERANCE_NATS = 1e-3


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


def draw_sample(
    lengths: list[int], vocabulary_size: int, device: torch.device
) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Conversations of random tokens, always the same: ids one after another, lengths, all positions with a loss."""
    ids = torch.randint(0, vocabulary_size, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    positions = torch.cat([torch.arange(s + 1, s + n) for s, n in zip(starts, lengths, strict=True)])
    return ids.to(device), lengths, positions.to(device)


def find_problem(losses: Callable[[], torch.Tensor], expected: torch.Tensor) -> str | None:
    """Why ``losses`` does not reproduce the expected ones to 1e-3 nats, or None where it does."""
    try:
        found = losses()
    except (NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        return " ".join(str(error).split())[:200]
    is_equal = bool((found - expected).abs().max() < _TOLERANCE_NATS)
    return None if is_equal else "its losses differ from the plain ones"
