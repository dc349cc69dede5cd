"""The optimizer and its learning rates, as transformers' Trainer sets them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokenclean.recipe import TrainingSettings
from tokenclean.training.step_plan import StepPlan

# Parameters by these names, and those of LayerNorm modules, have no weight decay.
_WITHOUT_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def adamw(model: torch.nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the trained parameters of ``model``, with weight decay on all but biases and norms."""
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], _WITHOUT_DECAY))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for name, parameter in trained if name in decayed],
            "weight_decay": settings.weight_decay,
        },
        {"params": [parameter for name, parameter in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rates(settings: TrainingSettings, plan: StepPlan) -> Callable[[int], float]:
    """The learning rate of each step by its number, from 0: the whole schedule's, at the steps' positions on it."""
    from transformers import get_scheduler

    unused = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    schedule: Any = get_scheduler(settings.schedule, unused, plan.warmup_steps, plan.part.total)
    factor = schedule.lr_lambdas[0]
    return lambda step: settings.learning_rate * factor(plan.position(step))
