"""Works computed by the actors of a Ray cluster, which open a work once; this process reads, stores and puts together.

Results come back to this process, the driver, which writes them: it holds the run folder's lock, its disk is the only
one that is needed, and a manifest is written by the same code as without Ray. It says on which machine and with which
packages the stage was computed. Losses of a served reference are asked for by the driver, since its server's limits are
those of one client.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

from tokenclean.errors import RankError, needs_extra
from tokenclean.executors.executor import Compute, Given, Item, Kept, Key, Made, Stages, Work, find_stage
from tokenclean.executors.local import compute_here
from tokenclean.executors.ray_worker import SendFiles, SentFiles
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS
from tokenclean.recipe import ExecutorSettings
from tokenclean.recipe.executor_settings import RAY

if TYPE_CHECKING:
    from tokenclean.executors.ray_actors import Actors, OpenWork

_HELD = 4
"""So many results an actor may wait for an earlier one, where they are wanted in order."""


class RayExecutor:
    """As ``Executor``; a context, connected to Ray within its block.

    ``note(text)`` gets what the user should know, Ray's own output is kept away. A program that has called ``ray.init``
    already keeps its connection. Entering raises MissingExtraError without the extra ``ray``, RankError where the
    cluster cannot be reached.
    """

    processes = SINGLE_PROCESS

    def __init__(self, settings: ExecutorSettings, note: Callable[[str], None]) -> None:
        self._settings, self._note = settings, note
        self._owns_connection = False
        self._actors: Actors | None = None

    def __enter__(self) -> RayExecutor:
        with needs_extra("ray", "ray", f"--on {self._settings.kind}"):
            import ray
        if not ray.is_initialized():
            self._connect()
            self._owns_connection = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._actors is not None:
            self._actors.end()
            self._actors = None
        if self._owns_connection:
            import ray

            ray.shutdown()

    @property
    def actors_device(self) -> str:
        """``cuda`` if actors have GPUs, else ``cpu``; this machine's own GPUs do not count."""
        return "cuda" if self._settings.num_gpus else "cpu"

    @contextmanager
    def open(self, work: Work[Given, Made]) -> Iterator[Compute[Given, Made]]:
        """As ``Executor.open``; its function raises as ``Actors.take`` does."""
        with closing(_Flow(self._begin, work, in_order=True)) as flow:

            def compute(items: Iterable[Item[Any, Given]]) -> Iterator[tuple[Item[Any, Given], Made]]:
                for item in items:
                    yield from flow.give(item)
                yield from flow.rest()

            yield compute

    def compute(
        self,
        stages: Stages[Key, Given, Kept],
        items: Iterable[Item[Key, Given]],
        progress: Progress | None,
        total: int,
    ) -> Iterator[tuple[Item[Key, Given], Kept]]:
        """As ``Executor.compute``, as stages are finished. Raises as ``Actors.take`` and ``Store.stage`` do.

        The work may be computed beside another, from whose stages the ``items`` are made."""
        work = stages.work
        if work is None:
            yield from compute_here(stages, items, progress, total)
            return
        done = 0

        def stored(sent: Item[Item[Key, Given], tuple[Given, str]], files: SentFiles) -> tuple[Item[Key, Given], Kept]:
            nonlocal done
            item = sent.key
            kept = stages.store(item.key, files.write)
            done += item.span
            if progress is not None:
                progress(min(done, total - 1), total)
            return item, kept

        with closing(_Flow(self._begin, SendFiles(work))) as flow:
            for item in items:
                if (kept := find_stage(stages, item.key)) is not None:
                    done += item.span
                    yield item, kept
                    continue
                for finished in flow.give(
                    Item(item, item.number, partial(_given_with_what, item), item.what, item.ids)
                ):
                    yield stored(*finished)
            for finished in flow.rest():
                yield stored(*finished)

    def _begin(self) -> Actors:
        """The actors; they are started with the first item that is to be computed."""
        from tokenclean.executors.ray_actors import Actors

        self._actors = self._actors or Actors(self._settings, self._note)
        return self._actors

    def _connect(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to nobody
        address = None if self._settings.kind == RAY else self._settings.kind
        _silence()
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            place = address or os.environ.get("RAY_ADDRESS") or "the cluster of this machine"
            raise RankError(
                f"cannot connect to Ray at {place} ({reason}); start it with ray start, or correct --on or RAY_ADDRESS"
            ) from error
        nodes, has = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
        gpus = f", {has['GPU']:g} GPUs" if has.get("GPU") else ""
        self._note(f"Ray: {nodes} node{'s' if nodes > 1 else ''}, {has.get('CPU', 0):g} CPUs{gpus}")


class _Flow(Generic[Given, Made]):
    """The items of one work, given to actors and taken back: as they are finished, or ``in_order``.

    The work is begun with the first item, so that one with nothing to compute starts no actor."""

    def __init__(self, begin: Callable[[], Actors], work: Work[Given, Made], *, in_order: bool = False) -> None:
        self._start, self._work, self._in_order = begin, work, in_order
        self._begun: tuple[Actors, OpenWork] | None = None
        self._expected: deque[Item[Any, Given]] = deque()
        self._held: dict[int, Made] = {}

    def give(self, item: Item[Any, Given]) -> Iterator[tuple[Item[Any, Given], Made]]:
        """Have an item computed. Gives what is finished, until an actor is free for one more item."""
        if self._begun is None:
            actors = self._start()
            self._begun = actors, actors.begin(self._work)
        actors, opened = self._begun
        actors.give(opened, item)
        if self._in_order:
            self._expected.append(item)
        yield from self._finished(timeout=0)
        while opened.open >= actors.limit or len(self._held) >= _HELD * actors.limit:
            yield from self._finished()

    def rest(self) -> Iterator[tuple[Item[Any, Given], Made]]:
        """What is still to be finished."""
        while self._begun is not None and self._begun[1].open:
            yield from self._finished()

    def close(self) -> None:
        """Stop what is computed for this work."""
        if self._begun is not None:
            actors, opened = self._begun
            actors.finish(opened)

    def _finished(self, timeout: float | None = None) -> Iterator[tuple[Item[Any, Given], Made]]:
        assert self._begun is not None
        actors, opened = self._begun
        for item, made in actors.take(opened) if timeout is None else actors.take(opened, timeout):
            if not self._in_order:
                yield item, made
                continue
            self._held[id(item)] = made
            while self._expected and id(self._expected[0]) in self._held:
                first = self._expected.popleft()
                yield first, self._held.pop(id(first))


def _given_with_what(item: Item[Any, Given]) -> tuple[Given, str]:
    return item.given(), item.what


def _silence() -> None:
    """Keep Ray's own messages about lost nodes and workers off the terminal; ours say what matters, and Ray's logs have
    the rest. Ray has no public switch for them."""
    from ray._private import worker

    worker._worker_logs_enabled = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
