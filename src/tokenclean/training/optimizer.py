"""The optimizer and its learning rates, as transformers' Trainer sets them up, and its moments as a file.

By this file another process or training continues with the moments.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tokenclean.errors import TrainingError
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.recipe import TrainingSettings
from tokenclean.training.sharding import as_part_of, whole
from tokenclean.training.step_plan import StepPlan

MOMENTS = "optimizer.safetensors"
"""File name: ``<moment>.<parameter>`` -> tensor, as the optimizer holds them."""

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


def named_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What ``MOMENTS`` holds, for the trained parameters of ``model``; every process has to call it."""
    names = list(_trained(model, optimizer))
    return {
        f"{moment}.{names[number]}": whole(tensor)
        for number, moments in optimizer.state_dict()["state"].items()
        for moment, tensor in moments.items()
    }


def save_moments(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, processes: Processes = SINGLE_PROCESS
) -> None:
    """Write the moments into the folder. All ``processes`` have to call it; the first writes."""
    moments = named_moments(model, optimizer)
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(moments, folder / MOMENTS)


def load_moments(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give the moments in the folder to an ``optimizer``, whose learning rate and other options stay its own.

    Raises TrainingError where the folder has none, or those of other parameters.
    """
    path = folder / MOMENTS
    if not path.is_file():
        raise TrainingError(f"{path}: missing; a training can only go on from one that was itself part of a longer one")
    parameters = _trained(model, optimizer)
    numbers = {name: number for number, name in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        moment, _, name = key.partition(".")
        if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
            raise TrainingError(f"{path}: {key} belongs to no trained parameter of this shape; keep lora.* as it was")
        state.setdefault(numbers[name], {})[moment] = as_part_of(parameters[name], tensor)
    if missing := [name for name, number in numbers.items() if number not in state]:
        raise TrainingError(f"{path}: has nothing for {missing[0]}; keep lora.* as it was")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trained(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's parameters by name, in the order in which its ``state_dict`` numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
