"""Shards computed by the actors of a Ray cluster, which load the model once; this process reads, tokenizes and stores.

Results come back to this process, the driver, which writes them: it holds the run folder's lock, its disk is the only
one that is needed, and a manifest is written by the same code as without Ray. It says on which machine and with which
packages the shard was computed. Losses of a served reference are asked for by the driver, since its server's limits are
those of one client.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from tokenclean.errors import RankError, RecipeError, needs_extra
from tokenclean.observer import Progress
from tokenclean.processes import SINGLE_PROCESS
from tokenclean.recipe import ExecutorSettings
from tokenclean.recipe.executor_settings import RAY
from tokenclean.scoring.executors.executor import PassShard
from tokenclean.scoring.executors.local import compute_here
from tokenclean.scoring.stored_losses import LossShard, ShardLosses, find_losses

if TYPE_CHECKING:
    from tokenclean.scoring.executors.ray_actors import Actors
    from tokenclean.scoring.executors.ray_worker import SentShard
    from tokenclean.scoring.model_losses import ModelWork


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
            import ray  # pyright: ignore[reportMissingImports]
        if not ray.is_initialized():
            self._connect()
            self._owns_connection = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._actors is not None:
            self._actors.end()
            self._actors = None
        if self._owns_connection:
            import ray  # pyright: ignore[reportMissingImports]

            ray.shutdown()

    def device(self, name: str) -> str:
        """``cuda`` if actors have GPUs, else ``cpu``; this machine's own GPUs do not count.

        Raises RecipeError where ``name`` says something else."""
        device = "cuda" if self._settings.num_gpus else "cpu"
        if name not in ("auto", device):
            raise RecipeError(
                f"{name!r}: an actor of Ray has {self._settings.num_gpus:g} GPUs, so it computes on {device}; give "
                "auto, or another --num-gpus (executor.num_gpus)",
                "device",
            )
        return device

    def compute(
        self, losses: ShardLosses, shards: Iterable[PassShard], progress: Progress | None, total: int
    ) -> Iterator[tuple[PassShard, LossShard]]:
        """As ``Executor.compute``, as shards are finished. Raises as ``Actors.take`` and ``Store.stage`` do."""
        if losses.work is None:
            yield from compute_here(losses, shards, progress, total)
            return
        actors, done = None, 0

        def stored(shard: PassShard, sent: SentShard) -> tuple[PassShard, LossShard]:
            nonlocal done
            kept = losses.store(shard.tokens_hash, sent.write)
            done += shard.span
            if progress is not None:
                progress(min(done, total - 1), total)
            return shard, kept

        try:
            for shard in shards:
                if (found := find_losses(losses, shard.tokens_hash)) is not None:
                    done += shard.span
                    yield shard, found
                    continue
                actors = actors or self._begin(losses.work)
                actors.give(shard)
                for finished in actors.take(timeout=0):
                    yield stored(*finished)
                while actors.open >= actors.limit:  # no more is read until an actor is free
                    for finished in actors.take():
                        yield stored(*finished)
            while actors is not None and actors.open:
                for finished in actors.take():
                    yield stored(*finished)
        finally:
            if actors is not None:
                actors.end_pass()

    def _begin(self, work: ModelWork) -> Actors:
        """The actors, ready for a pass; they are started with the first shard that is to be computed."""
        from tokenclean.scoring.executors.ray_actors import Actors

        if self._actors is None:
            self._actors = Actors(self._settings, self.device("auto"), self._note)
        self._actors.begin(work)
        return self._actors

    def _connect(self) -> None:
        import ray  # pyright: ignore[reportMissingImports]

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


def _silence() -> None:
    """Keep Ray's own messages about lost nodes and workers off the terminal; ours say what matters, and Ray's logs have
    the rest. Ray has no public switch for them."""
    from ray._private import worker  # pyright: ignore[reportMissingImports]

    worker._worker_logs_enabled = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
