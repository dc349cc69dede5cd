"""The shards shared by the processes of ``torchrun`` or ``accelerate launch``, which see one run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenclean.models.device import resolve_device
from tokenclean.observer import Progress
from tokenclean.processes import Processes
from tokenclean.scoring.executors.executor import PassShard
from tokenclean.scoring.executors.local import compute_here

if TYPE_CHECKING:
    from tokenclean.scoring.stored_losses import LossShard, ShardLosses


@dataclass(frozen=True)
class TorchrunExecutor:
    """As ``Executor``: shard n is computed by the process whose rank is n modulo their number."""

    processes: Processes

    def device(self, name: str) -> str:
        """As ``resolve_device``: each process of a machine has a GPU of its own."""
        return resolve_device(name, local_rank=self.processes.local_rank)

    def compute(
        self, losses: ShardLosses, shards: Iterable[PassShard], progress: Progress | None, total: int
    ) -> Iterator[tuple[PassShard, LossShard]]:
        """As ``Executor.compute``, in the order of the shards. Raises as ``ShardLosses.make`` does."""
        own = (shard for shard in shards if self.processes.owns(shard.number))
        return compute_here(losses, own, progress, total)
