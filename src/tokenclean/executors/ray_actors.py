"""Actors of Ray: items are given to those that are free, and taken back from those that die."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from tokenclean.errors import RankError
from tokenclean.executors.executor import Item, Work
from tokenclean.executors.ray_worker import Worker, installed_packages
from tokenclean.recipe import ExecutorSettings

TRIES = 3
"""An item is given up after this many actors have died over it, a work after this many that could not even start."""

_NEVER_RAN = "never ran"
"""What Ray says of an actor whose start it cancelled, as it may where other commands hold the cluster's CPUs."""

_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0


@dataclass(eq=False)
class OpenWork:
    """A work that actors compute. ``open``: how many of its items were given and have not come back; ``made``: results
    that have come back and were not taken."""

    number: int
    work: Work[Any, Any]
    open: int = 0
    made: deque[tuple[Item[Any, Any], Any]] = field(default_factory=deque)


@dataclass
class _Job:
    """An item of a work, and why actors died that computed it."""

    work: OpenWork
    item: Item[Any, Any]
    deaths: list[str] = field(default_factory=list)


class Actors:
    """Actors that compute the items of open works; between works they hold no model.

    Of each work at most ``limit`` items are accepted at a time, as many as there are actors at most. Actors are started
    when there is an item for them; a dead one is replaced. ``note(text)`` gets what the user should know.
    """

    def __init__(self, settings: ExecutorSettings, note: Callable[[str], None]) -> None:
        self._settings, self._note = settings, note
        # An actor is restarted by us, not by Ray, which would give it the same item without end.
        options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus, "max_restarts": 0}
        self._actor_class: Any = ray.remote(**options, max_task_retries=0)(Worker)
        self._packages = installed_packages()
        self.limit = 0
        self._works = 0
        # Actors, and whether they are new, by the reference that tells that they live.
        self._starting: dict[Any, tuple[Any, bool]] = {}
        self._free: deque[Any] = deque()
        self._working: dict[Any, tuple[Any, _Job]] = {}  # actors and their items by the reference to the result
        self._waiting: deque[_Job] = deque()
        self._failed_starts: list[str] = []
        self._no_start_before = 0.0  # on the monotonic clock
        self._warned: set[str] = set()
        self._idle_since: float | None = None

    def begin(self, work: Work[Any, Any]) -> OpenWork:
        """Begin a work."""
        self.limit = self._settings.actors or self._most_actors()
        self._check_free()
        self._works += 1
        return OpenWork(self._works, work)

    def finish(self, work: OpenWork) -> None:
        """Kill the actors that still compute the work, and have the others close it."""
        for reference in [reference for reference, (_, job) in self._working.items() if job.work is work]:
            _kill(self._working.pop(reference)[0])
        self._waiting = deque(job for job in self._waiting if job.work is not work)
        with suppress(RayError, ConnectionError):  # the error that ended the work is the one to report
            for actor in self._living:
                actor.close.remote(work.number)

    def end(self) -> None:
        """Kill all actors."""
        for actor in self._living:
            _kill(actor)
        self._working.clear()
        self._waiting.clear()
        self._free.clear()
        self._starting.clear()

    def give(self, work: OpenWork, item: Item[Any, Any]) -> None:
        """Have an item computed. To be called while fewer than ``limit`` of its work are open."""
        work.open += 1
        self._waiting.append(_Job(work, item))
        self._assign()

    def take(self, work: OpenWork, timeout: float = _POLL_SECONDS) -> Iterator[tuple[Item[Any, Any], Any]]:
        """The items of a work that have been computed, once there is one, or after ``timeout`` seconds.

        Raises RankError for an item over which TRIES actors died and where the cluster is gone; an actor's own errors
        as they are.
        """
        self._look(0 if work.made else timeout)
        while work.made:
            work.open -= 1
            yield work.made.popleft()

    def _look(self, timeout: float) -> None:
        """See which actors have started, finished or died, waiting for one of them for ``timeout`` seconds."""
        references = [*self._starting, *self._working]
        try:
            done, _ = ray.wait(references, num_returns=len(references), timeout=0) if references else ([], [])
            if references and not done and timeout:
                done, _ = ray.wait(references, num_returns=1, timeout=timeout)
            elif not references:  # a start that Ray cancelled is tried again in a while
                time.sleep(timeout)
        except (RayError, ConnectionError) as error:
            raise _cluster_gone(error) from error
        for reference in done:
            if reference in self._starting:
                self._started(reference)
            else:
                self._finished(reference)
        self._assign()
        self._say_if_stuck()

    def _assign(self) -> None:
        """Give waiting items to free actors, and start actors for the rest."""
        while self._waiting and self._free:
            actor, job = self._free.popleft(), self._waiting.popleft()
            reference = actor.compute.remote(job.work.number, job.work.work, job.item.given())
            self._working[reference] = actor, job
        if time.monotonic() < self._no_start_before:
            return
        while len(self._starting) < len(self._waiting) and len(self._living) < self.limit:
            actor = self._actor_class.remote(self._settings.num_cpus)
            self._starting[actor.start.remote(self._packages)] = actor, True

    def _check_free(self) -> None:
        """Let the free actors say that they live before they are given an item: the death of a node takes many, and one
        item must not be held against all of them."""
        for actor in self._free:
            self._starting[actor.start.remote(self._packages)] = actor, False
        self._free.clear()

    @property
    def _living(self) -> list[Any]:
        at_work = [actor for actor, _ in (*self._starting.values(), *self._working.values())]
        return [*self._free, *at_work]

    def _started(self, reference: Any) -> None:
        actor, is_new = self._starting.pop(reference)
        try:
            _result(reference)
        except RayActorError as error:
            _kill(actor)
            if _NEVER_RAN in str(error):
                self._no_start_before = time.monotonic() + _POLL_SECONDS
                self._say_once(f"Ray cancelled the start of an actor ({_reason(error)}); it is tried again")
            elif is_new:
                self._failed_starts.append(_reason(error))
            if len(self._failed_starts) >= TRIES and not (self._free or self._working):
                raise RankError(
                    f"{TRIES} Ray actors ended before they computed anything; last: {self._failed_starts[-1]}. Is "
                    "tokenclean installed on the nodes, in the same version, and is there enough memory?"
                ) from error
        else:
            self._free.append(actor)

    def _finished(self, reference: Any) -> None:
        """Keep the result of an item; where its actor has died, the item waits for another."""
        actor, job = self._working.pop(reference)
        try:
            made, warnings = _result(reference)
        except RayActorError as error:
            _kill(actor)  # one that only seems dead must not go on computing
            job.deaths.append(_reason(error))
            if len(job.deaths) >= TRIES:
                raise RankError(_poisoned(job)) from error
            self._note(f"{job.item.what}: its Ray actor ended ({job.deaths[-1]}); another one computes it")
            self._waiting.appendleft(job)
            self._check_free()
            return
        self._free.append(actor)
        self._failed_starts.clear()
        for text in warnings:
            self._say_once(text)
        job.work.made.append((job.item, made))

    def _say_if_stuck(self) -> None:
        """Say what is waited for, once, where no actor can be started for a while."""
        is_idle = bool(self._waiting) and not self._working
        self._idle_since = (self._idle_since or time.monotonic()) if is_idle else None
        if self._idle_since is not None and time.monotonic() > self._idle_since + _PATIENCE_SECONDS:
            wanted = f"{self._settings.num_cpus} CPUs and {self._settings.num_gpus:g} GPUs"
            waited = f"no Ray actor has started in {_PATIENCE_SECONDS:.0f} seconds"
            self._say_once(f"{waited}; waiting for a node with {wanted} free")

    def _say_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._note(text)

    def _most_actors(self) -> int:
        """As many actors as the cluster has room for when nothing else runs on it."""
        has = ray.cluster_resources()
        room = has.get("CPU", 0) / self._settings.num_cpus
        if self._settings.num_gpus:
            room = min(room, has.get("GPU", 0) / self._settings.num_gpus)
        return max(1, int(room))


def _result(reference: Any) -> Any:
    """What an actor returned. Raises RayActorError where it has died, its own error as it is."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, Exception) and not isinstance(cause, RayTaskError):
            raise cause from None
        raise RankError(f"a Ray actor failed: {str(error).strip().splitlines()[-1]}") from error
    except RayActorError:
        raise
    except (RayError, ConnectionError) as error:
        # Such as the loss of a node between the end of a task and the transfer of its result.
        raise RayActorError(error_msg=str(error)) from error


def _poisoned(job: _Job) -> str:
    ids = job.item.ids()
    rows = f"rows {ids[0]} to {ids[-1]} ({len(ids)} rows)" if ids else "no rows"
    return (
        f"{job.item.what}: {len(job.deaths)} Ray actors ended while they computed {rows}; last: {job.deaths[-1]}. "
        "Look among them for a row that takes more memory than an actor has, or where losses are computed give smaller "
        "--pack-tokens; finished stages are kept"
    )


def _reason(error: Exception) -> str:
    """Why an actor died, in one line: Ray's texts have many, some of them indented ones with names and numbers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    known = next((line for line in lines if line.startswith("The actor is dead because")), None)
    if known is None:  # the first line only says that it died
        return " ".join(lines[1:] or lines)
    return known.removeprefix("The actor is dead because ").partition(". Some common causes")[0].partition(". ")[0]


def _kill(actor: Any) -> None:
    with suppress(RayError, ConnectionError, ValueError):  # it has ended, or the cluster has
        ray.kill(actor)


def _cluster_gone(error: Exception) -> RankError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RankError(
        f"the Ray cluster cannot be reached any more ({reason}); finished stages are kept: give the command again once "
        "a cluster is there, or without --on"
    )
