"""Stages shared by the processes of ``torchrun`` or ``accelerate launch``, which see one run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tokenclean.executors.executor import Compute, Given, Item, Kept, Key, Made, Stages, Work
from tokenclean.executors.local import compute_here, open_here
from tokenclean.observer import Progress
from tokenclean.processes import Processes


@dataclass(frozen=True)
class TorchrunExecutor:
    """As ``Executor``: the stage of item n is computed by the process whose rank is n modulo their number.

    Other works each process computes as a whole: their results have no place where the others would find them.
    """

    processes: Processes
    actors_device: str | None = None

    def open(self, work: Work[Given, Made]) -> AbstractContextManager[Compute[Given, Made]]:
        """As ``Executor.open``. Raises as the work does."""
        return open_here(work)

    def compute(
        self,
        stages: Stages[Key, Given, Kept],
        items: Iterable[Item[Key, Given]],
        progress: Progress | None,
        total: int,
    ) -> Iterator[tuple[Item[Key, Given], Kept]]:
        """As ``Executor.compute``, in the order of the items. Raises as ``Stages.make`` does."""
        own = (item for item in items if self.processes.owns(item.number))
        return compute_here(stages, own, progress, total)
