"""The processes of one command that share its work, as started by ``torchrun`` or ``accelerate launch``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from tokenclean.errors import RankError

if TYPE_CHECKING:
    import torch

_Value = TypeVar("_Value")

# One process may be done days before the slowest; noticing that a process has died is the launcher's job.
_TIMEOUT = timedelta(days=30)
_ADVICE = "start all of them with torchrun or accelerate launch"


@dataclass(frozen=True)
class Processes:
    """A group of ``count`` processes. ``rank``: this process's number in it, from 0; ``local_rank``: its number among
    those of its machine.

    With one process no process group is formed, with several at the first call that needs one.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.count and 0 <= self.local_rank < self.count):
            raise RankError(
                f"rank {self.rank} (of its machine: {self.local_rank}) of {self.count} processes: expected numbers "
                f"from 0 to {self.count - 1}; {_ADVICE}, or unset RANK, WORLD_SIZE and LOCAL_RANK"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """From RANK, WORLD_SIZE and LOCAL_RANK; one process without WORLD_SIZE.

        Raises RankError where they are not such numbers.
        """
        if environment.get("WORLD_SIZE", "1") == "1":
            return cls()
        values = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        wrong = [f"{name}={value}" if value else f"no {name}" for name, value in values.items() if not value.isdigit()]
        if wrong:
            raise RankError(f"{', '.join(wrong)} in the environment, expected a number; {_ADVICE}, or unset WORLD_SIZE")
        return cls(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which logs and writes for all."""
        return self.rank == 0

    def owns(self, number: int) -> bool:
        """Whether the piece of work of this number, from 0, is this process's."""
        return number % self.count == self.rank

    def barrier(self) -> None:
        """Wait until every process is here. Raises RankError where one cannot be reached or has ended."""
        self.gather(None)

    def all_reduce_sum(self, numbers: Sequence[int]) -> list[int]:
        """The sums over all processes, each of which gives equally many numbers. Waits as ``barrier`` does."""
        return [sum(parts) for parts in zip(*self.gather(numbers), strict=True)]

    def gather(self, value: _Value) -> list[_Value]:
        """Every process's value, in order of rank. Waits as ``barrier`` does."""
        found = [value] * self.count
        if self.count > 1:
            self._communicate(lambda distributed: distributed.all_gather_object(found, value))
        return found

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Put the sum over all processes into each one's tensor, on any device. Waits as ``barrier`` does."""
        if self.count > 1:
            self._communicate(lambda distributed: distributed.all_reduce(tensor))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Put rank 0's content into each process's tensor, on any device. Waits as ``barrier`` does."""
        if self.count > 1:
            self._communicate(lambda distributed: distributed.broadcast(tensor, src=0))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the process group, if one was formed, at the end of the block."""
        try:
            yield
        finally:
            distributed = sys.modules.get("torch.distributed")  # a command that fails early has not loaded torch
            if self.count > 1 and distributed is not None and distributed.is_initialized():
                distributed.destroy_process_group()

    def _communicate(self, action: Callable) -> None:
        """Call ``action(torch.distributed)`` within the process group, which is formed first if need be."""
        import torch
        import torch.distributed as distributed

        try:
            if not distributed.is_initialized():
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                distributed.init_process_group(backend, rank=self.rank, world_size=self.count, timeout=_TIMEOUT)
            action(distributed)
        except (RuntimeError, ValueError) as error:  # ValueError: no MASTER_ADDR and MASTER_PORT
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise RankError(
                f"cannot meet the other processes ({reason}); where one of them failed, its own message says why; else "
                f"{_ADVICE}"
            ) from error


SINGLE_PROCESS = Processes()
"""One process."""
