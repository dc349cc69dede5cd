"""Everything in this process, one item after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from tokenclean.executors.executor import Compute, Given, Item, Kept, Key, Made, Stages, Work
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS


class LocalExecutor:
    """As ``Executor``."""

    processes = SINGLE_PROCESS
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
        return compute_here(stages, items, progress, total)


@contextmanager
def open_here(work: Work[Given, Made]) -> Iterator[Compute[Given, Made]]:
    """A block with a function that computes items in this process, one after another; the work is opened with the
    first."""
    with ExitStack() as block:
        of_item: Callable[[Given], Made] | None = None

        def compute(items: Iterable[Item[Key, Given]]) -> Iterator[tuple[Item[Key, Given], Made]]:
            nonlocal of_item
            for item in items:
                of_item = of_item or block.enter_context(work.opened())
                yield item, of_item(item.given())

        yield compute


def compute_here(
    stages: Stages[Key, Given, Kept], items: Iterable[Item[Key, Given]], progress: Progress | None, total: int
) -> Iterator[tuple[Item[Key, Given], Kept]]:
    """Find or compute the stages of the items in this process, one after another."""
    for item in items:
        report = None if progress is None else progress_of_part(progress, item.start, item.span, total)
        yield item, stages.make(item, report)


def progress_of_part(progress: Progress, start: int, span: int, total: int) -> Progress:
    """Progress of a part that covers ``span`` of ``total`` from ``start``, in units of the whole.

    It never reaches ``total``: the end is reported once, after the last part, computed or found.
    """
    return lambda done, of: progress(min(start + span * done // max(of, 1), total - 1), total)


LOCAL = LocalExecutor()
"""This process."""
