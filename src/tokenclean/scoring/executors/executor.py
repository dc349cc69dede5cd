"""The interface of executors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tokenclean.observer import Progress
from tokenclean.processes import Processes

if TYPE_CHECKING:
    from tokenclean.scoring.stored_losses import LossShard, ShardLosses
    from tokenclean.tokens import TokenizedPool


@dataclass(frozen=True)
class PassShard:
    """One shard of a pass.

    ``number``: its place in the pool, from 0. ``tokens_hash``: ``hash_tokens`` of its ``tokens()``. ``what``: a few
    words for manifests and messages. ``start``, ``span``: where it begins and how long it is, in the unit of the pass's
    progress.
    """

    number: int
    tokens_hash: str
    tokens: Callable[[], TokenizedPool]
    what: str
    start: int
    span: int


class Executor(Protocol):
    """Computes the shards of passes."""

    @property
    def processes(self) -> Processes:
        """Those that run the same command side by side."""
        ...

    def device(self, name: str) -> str:
        """The torch device of passes where a command or recipe says ``name``. Raises RecipeError where it cannot be."""
        ...

    def compute(
        self, losses: ShardLosses, shards: Iterable[PassShard], progress: Progress | None, total: int
    ) -> Iterator[tuple[PassShard, LossShard]]:
        """Find or compute the losses of each of this process's shards; gives them in any order, each once it is stored.

        ``shards`` is read as the work proceeds, so it may make its shards while others are computed. ``progress`` gets
        how much of ``total`` is done, less than all of it: the caller reports the end.
        """
        ...
