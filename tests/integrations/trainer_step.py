"""One optimizer step of a Hugging Face trainer, and how it is held against another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from tokenclean.ragged import Ragged

STEP = {
    "max_steps": 1,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.0,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
"""Options of a trainer that takes one step in float32 and leaves the gradients as they are."""


@dataclass(frozen=True)
class StepResult:
    """The loss of one optimizer step, in nats, and its gradients by parameter."""

    loss: float
    gradients: dict[str, torch.Tensor]


class _Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.found = gradients_of(objects["model"])


def run_step(trainer: Trainer) -> StepResult:
    """The step's loss, the micro-batches' shares added up, and its gradients."""
    gradients, losses = _Gradients(), []
    trainer.add_callback(gradients)
    real = trainer.training_step

    def training_step(*arguments: Any, **options: Any) -> torch.Tensor:
        losses.append(real(*arguments, **options))
        return losses[-1]

    trainer.training_step = training_step
    trainer.train()
    return StepResult(float(sum(losses)), gradients.found)


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def as_dicts(input_ids: Ragged, weights: Ragged) -> list[dict[str, list[float]]]:
    return [
        {"input_ids": ids.tolist(), "token_weight": row.tolist()} for ids, row in zip(input_ids, weights, strict=True)
    ]


def assert_same(found: StepResult, expected: StepResult) -> None:
    """To float32's rounding."""
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        error = (found.gradients[name] - gradient).abs().max()
        assert error < 2e-5 * max(1.0, float(gradient.abs().max())), name
