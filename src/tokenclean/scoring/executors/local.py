"""All shards in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tokenclean.models.device import resolve_device
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS
from tokenclean.scoring.executors.executor import PassShard

if TYPE_CHECKING:
    from tokenclean.scoring.stored_losses import LossShard, ShardLosses


class LocalExecutor:
    """As ``Executor``."""

    processes = SINGLE_PROCESS

    def device(self, name: str) -> str:
        """As ``resolve_device``."""
        return resolve_device(name)

    def compute(
        self, losses: ShardLosses, shards: Iterable[PassShard], progress: Progress | None, total: int
    ) -> Iterator[tuple[PassShard, LossShard]]:
        """As ``Executor.compute``, in the order of the shards. Raises as ``ShardLosses.make`` does."""
        return compute_here(losses, shards, progress, total)


def compute_here(
    losses: ShardLosses, shards: Iterable[PassShard], progress: Progress | None, total: int
) -> Iterator[tuple[PassShard, LossShard]]:
    """Find or compute the shards in this process, one after another."""
    for shard in shards:
        report = None if progress is None else progress_of_part(progress, shard.start, shard.span, total)
        yield shard, losses.make(shard.tokens_hash, shard.tokens, shard.what, report)


def progress_of_part(progress: Progress, start: int, span: int, total: int) -> Progress:
    """Progress of a part that covers ``span`` of ``total`` from ``start``, in units of the whole.

    It never reaches ``total``: the end is reported once, after the last part, computed or found.
    """
    return lambda done, of: progress(min(start + span * done // max(of, 1), total - 1), total)


LOCAL = LocalExecutor()
"""This process."""
