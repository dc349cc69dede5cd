"""One model in several processes: the same trained weights in each, or with FSDP2 a part of every weight in each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from tokenclean.errors import TrainingError

if TYPE_CHECKING:
    from tokenclean.training.train_step import TrainingStep

logger = logging.getLogger(__name__)


def distribute(step: TrainingStep) -> None:
    """Start all processes with the trained weights of the first, and shard the model where the settings ask for it.

    In place. Raises TrainingError where sharding is asked for a model that runs one conversation a pass: processes
    with different numbers of conversations would wait for each other for ever.
    """
    if step.processes.count == 1:
        return
    for parameter in step.model.parameters():
        if parameter.requires_grad:
            step.processes.broadcast(parameter.data)
    if step.settings.sharding == "fsdp2":
        _shard(step)


def _shard(step: TrainingStep) -> None:
    """FSDP2 with a unit for each decoder layer and one for the rest: a layer is whole only while it runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tokenclean.models.compiled import decoder_layers

    if not step.causal_lm.is_packed:
        name = type(step.causal_lm.lm).__name__
        raise TrainingError(f"training.sharding: {name} has no packed path, which sharding needs; set it to none")
    mesh = init_device_mesh(step.causal_lm.device.type, (step.processes.count,))
    layers = decoder_layers(step.causal_lm.body)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(step.module, mesh=mesh)
    step.is_sharded = True
    logger.info("sharded by FSDP2 over %d processes in %d units", step.processes.count, len(layers) + 1)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or the whole of which a sharded one is a part; every process has to call it."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous()


def as_part_of(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The whole ``tensor`` sharded as ``parameter`` is; one of another shape (a count of steps) is returned whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
