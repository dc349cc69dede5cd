"""The interface of executors, and what they are given: works, items and stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tokenclean.observer import Progress
from tokenclean.processes import Processes
from tokenclean.store import Make

Key = TypeVar("Key")
Given = TypeVar("Given")
Made = TypeVar("Made")
Kept = TypeVar("Kept")
_Given_contra = TypeVar("_Given_contra", contravariant=True)
_Made_co = TypeVar("_Made_co", covariant=True)
_Kept_co = TypeVar("_Kept_co", covariant=True)

WriteFiles = Callable[[Path, Given, str], Mapping[str, object]]
"""Writes the files of an item's stage into a folder; gets what the item gives and its ``what``, and returns the results
for the stage's manifest."""


@dataclass(frozen=True)
class Item(Generic[Key, Given]):
    """One piece of a work.

    ``key``: what the caller knows it by. ``number``: its place among all items, from 0. ``given``: what it is computed
    from, made when somebody is free to compute it. ``what``: a few words for manifests and messages. ``ids``: its rows,
    for the message if every process that computes it dies. ``start``, ``span``: where it begins and how long it is, in
    the unit of the work's progress.
    """

    key: Key
    number: int
    given: Callable[[], Given]
    what: str
    ids: Callable[[], Sequence[str]] = tuple
    start: int = 0
    span: int = 1


class Work(Protocol[_Given_contra, _Made_co]):
    """How an item is computed: from what it gives and this object's fields alone.

    It is pickled and sent to the actors of a cluster, so its fields are names, settings and hashes, never a model.
    """

    def opened(self) -> AbstractContextManager[Callable[[_Given_contra], _Made_co]]:
        """A block with the function that computes an item; what it needs, such as a model, is loaded once for all.

        Raises ModelError where what is found here is not what the work was described with."""
        ...


class FileWork(Protocol[_Given_contra]):
    """A ``Work`` whose results are files. See there."""

    def opened(self) -> AbstractContextManager[WriteFiles[_Given_contra]]:
        """A block with the function that writes an item's files."""
        ...


class Stages(Protocol[Key, Given, _Kept_co]):
    """Stages of a run folder, one for each item of a kind: losses of shards, tokens of shards.

    ``work``: how another process computes an item's files; None where only this one can.
    """

    @property
    def work(self) -> FileWork[Given] | None: ...

    def make(self, item: Item[Key, Given], progress: Progress | None = None) -> _Kept_co:
        """Find the item's stage, or compute it in this process."""
        ...

    def store(self, key: Key, make: Make) -> _Kept_co:
        """Find the stage of the item with this key, or store what ``make`` writes into its folder."""
        ...


class Compute(Protocol[Given, _Made_co]):
    """Computes the items of an open work."""

    def __call__(self, items: Iterable[Item[Key, Given]]) -> Iterator[tuple[Item[Key, Given], _Made_co]]:
        """The result of every item, in their order. ``items`` is read as the work proceeds."""
        ...


class Executor(Protocol):
    """Computes works.

    ``actors_device``: ``cpu`` or ``cuda``, on which actors compute; None where this process computes by itself.
    """

    @property
    def processes(self) -> Processes:
        """Those that run the same command side by side."""
        ...

    @property
    def actors_device(self) -> str | None: ...

    def open(self, work: Work[Given, Made]) -> AbstractContextManager[Compute[Given, Made]]:
        """A block with the function that computes items; every process gets all results."""
        ...

    def compute(
        self,
        stages: Stages[Key, Given, Kept],
        items: Iterable[Item[Key, Given]],
        progress: Progress | None,
        total: int,
    ) -> Iterator[tuple[Item[Key, Given], Kept]]:
        """Find or compute the stage of each of this process's items; in any order, each once it is stored.

        ``items`` is read as the work proceeds, so it may make its items while others are computed. ``progress`` gets
        how much of ``total`` is done, less than all of it: the caller reports the end.
        """
        ...


def find_stage(stages: Stages[Key, Given, Kept], key: Key) -> Kept | None:
    """The stage of an item, None where it is still to be computed."""

    def refuse(folder: Path) -> Mapping[str, object]:
        raise _OpenError

    try:
        return stages.store(key, refuse)
    except _OpenError:
        return None


class _OpenError(Exception):
    """A stage is not there yet."""
