"""FSDP2: each rank holds its part of every weight, and a layer's whole weights only while the layer runs."""

from __future__ import annotations

import logging

from tokenclean.errors import TrainingError
from tokenclean.models.compiled import decoder_layers
from tokenclean.processes import Processes
from tokenclean.training.train_step import TrainingStep

logger = logging.getLogger(__name__)


def shard(step: TrainingStep, processes: Processes) -> None:
    """Shard the step's model among the processes: a unit for each decoder layer, one for the rest. In place.

    Every rank has to hold the same whole weights before. Raises TrainingError for a model that runs one conversation
    a pass, since processes with other numbers of conversations would wait for each other for ever.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not step.causal_lm.is_packed:
        name = type(step.causal_lm.lm).__name__
        raise TrainingError(f"training.sharding: {name} has no packed path, which sharding needs; set it to none")
    mesh = init_device_mesh(step.causal_lm.device.type, (processes.count,))
    layers = decoder_layers(step.causal_lm.body)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(step.module, mesh=mesh)
    step.is_sharded = True
    logger.info("sharded by FSDP2 over %d processes in %d units", processes.count, len(layers) + 1)
