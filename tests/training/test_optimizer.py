"""The optimizer is the one that transformers' Trainer builds."""

from __future__ import annotations

import torch
from small_llama import small_llama
from transformers import Trainer, TrainingArguments

from tokenclean.recipe import TrainingSettings
from tokenclean.training.optimizer import adamw


class Model(torch.nn.Module):
    """Names and kinds of parameters that have no weight decay, in and around a Llama with a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_llama()
        self.model.model.layers[0].requires_grad_(False)
        self.head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        self.q_norm = torch.nn.Linear(4, 4, bias=False)
        self.normal = torch.nn.Linear(4, 4, bias=False)


def test_groups_and_options_are_those_of_the_trainer(tmp_path):
    model, settings = Model(), TrainingSettings(learning_rate=3e-3, weight_decay=0.1)
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=3e-3, weight_decay=0.1, use_cpu=True)
    expected = Trainer(model=model, args=arguments).create_optimizer().param_groups
    found = adamw(model, settings).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group, other in zip(found, expected, strict=True):
        assert [names[id(p)] for p in group.pop("params")] == [names[id(p)] for p in other.pop("params")]
        assert group == other
