"""The run folder: each stage's result under the hash of everything it was computed from, written whole or not at all.

A stage's folder is named ``<stage>-<key>``; the key hashes the stage's name, its version (raised by hand) and its
inputs (recipe values, keys of the stages before it, hashes of files). The same inputs therefore find the same folder,
and another recipe never overwrites it. A stage is written under a temporary name, flushed to disk, its
``manifest.json`` last, and renamed when whole. A stage that is found is checked against its manifest before it is used;
a damaged one is moved to ``damaged/`` and computed again. Only folders and files with temporary names are ever deleted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.store.condition import StageState, check_stage, clear_leftovers, list_stages, move_aside
from tokenclean.store.files import disk_refusal, explained_refusals, fingerprint, flush
from tokenclean.store.layout import FINISHED, SHORT_KEY, STAGES
from tokenclean.store.lock import RunLock, read_holder
from tokenclean.store.manifest import MANIFEST, Manifest, describe_software, read_manifest, seal_folder

_GOES_ON = "finished stages are kept, and the same command goes on where it stopped"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its key, the manifest, and whether it was found instead of computed."""

    path: Path
    key: str
    manifest: Manifest
    was_reused: bool


@dataclass(frozen=True)
class MadeElsewhere:
    """Returned by a ``make`` that wrote files which another process computed.

    ``results``: as ``make`` returns them. ``origin``: what the manifest says of that process in place of this one
    (``describe_origin``).
    """

    results: Mapping[str, object]
    origin: Mapping[str, object]


Make = Callable[[Path], Mapping[str, object] | MadeElsewhere | None]
"""Writes a stage's files into a folder and returns the results for its manifest."""


class Store:
    """The stages of one run folder (see the module's text). ``note(text)`` gets what is found damaged or is cleared."""

    def __init__(self, root: Path | str, note: Callable[[str], None] = logger.warning) -> None:
        self.root = Path(root)
        self._note = note
        self._whole: set[Path] = set()
        with explained_refusals(f"cannot use the run folder {root}"):
            (self.root / STAGES).mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(self.root, note)

    def stage(
        self,
        name: str,
        version: int,
        inputs: Mapping[str, object],
        make: Make,
        within: str = STAGES,
    ) -> Stage:
        """Find the stage's result, or call ``make(folder)`` to write it; what ``make`` returns goes into the manifest,
        its ``what`` being a few words on what the stage holds.

        ``within``: the folder of the run folder that holds it; outside ``stages`` it is named by its key alone. What is
        found is checked once by each Store. Where another process finishes the same stage first, its result counts.

        A failing ``make`` leaves nothing behind, and its error passes unchanged, except where the disk is full,
        read-only or gone: then a RunFolderError says what to do, as it does for a link or special file in the stage.
        """
        key = fingerprint({"stage": name, "version": version, "inputs": inputs})
        short = key[:SHORT_KEY]
        final = self.root / within / (f"{name}-{short}" if within == STAGES else short)
        with self._writing(final):
            found = self._find(final, key)
        if found is not None:
            return found
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with self._writing(final):
                temporary.mkdir(parents=True)
            started, clock = time.time(), time.monotonic()
            made = self._call(make, temporary, final)
            manifest = {
                "stage": name,
                "version": version,
                "key": key,
                "inputs": inputs,
                "results": dict(made.results if isinstance(made, MadeElsewhere) else made or {}),
                "depends_on": self._stages_named_in(inputs),
                **(made.origin if isinstance(made, MadeElsewhere) else describe_origin(started, clock)),
            }
            with self._writing(final):
                seal_folder(temporary, manifest)
                return self._publish(temporary, final, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other run out of the run folder for the block; re-entrant in one Store.

        The operating system drops the lock with its process, so what a killed run left blocks nobody (``store.lock``
        says what happens on file systems without locks). Taking the lock deletes the temporary folders and files of
        dead runs, so every process that makes stages has to hold it. Raises RunFolderError naming the process that
        holds it.
        """
        with self._lock.hold() as is_first:
            if is_first and (cleared := clear_leftovers(self.root)):
                self._note(cleared)
            yield

    def holder(self) -> Mapping[str, object] | None:
        """Who holds the lock (pid, host, started, command), without taking it; None when it is free."""
        return read_holder(self.root)

    def stages(self, within: str = STAGES) -> list[StageState]:
        """All stages of the run folder, checked, and those left unfinished, sorted by their folders' names."""
        return list_stages(self.root / within)

    def _find(self, final: Path, key: str) -> Stage | None:
        """The stage in the folder ``final``; None where there is none, or a damaged one, which is moved aside."""
        if not os.path.lexists(final):
            return None
        faults = [] if final in self._whole else check_stage(final)
        if not faults:
            manifest = read_manifest(final)
            if manifest["key"] == key:
                self._whole.add(final)
                return Stage(final, key, manifest, True)
            faults = [f"{MANIFEST}: key {manifest['key']}, expected {key}"]
        self._note(move_aside(self.root, final, faults))
        return None

    def _publish(self, temporary: Path, final: Path, key: str) -> Stage:
        """Give the whole folder its final name, unless another process has put the same stage there meanwhile."""
        try:
            os.rename(temporary, final)
        except OSError:
            if (found := self._find(final, key)) is not None:
                return found
            os.rename(temporary, final)  # what was there was damaged, and has been moved aside
        flush(final.parent)
        self._whole.add(final)
        return Stage(final, key, read_manifest(final), False)

    def _stages_named_in(self, inputs: Mapping[str, object]) -> list[str]:
        """Keys of this folder's stages that are values somewhere in the inputs."""
        present = {match["key"] for path in (self.root / STAGES).iterdir() if (match := FINISHED.fullmatch(path.name))}
        named = re.findall(r'(?<!\\)"([0-9a-f]{64})"(?!:)', json.dumps(inputs))
        return sorted({key for key in named if key[:SHORT_KEY] in present})

    def _call(self, make: Make, temporary: Path, final: Path) -> Mapping[str, object] | MadeElsewhere | None:
        try:
            return make(temporary)
        except Exception as error:
            reason = disk_refusal(error, place=final.name)
            if reason is None and _names_file_of(self.root, error):
                reason = str(error)
            if reason is None:
                raise
            raise RunFolderError(f"cannot write {final}: {reason}; {_GOES_ON}") from error

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """The store's own reading and writing: any OSError here is the run folder's fault."""
        try:
            yield
        except OSError as error:
            reason = disk_refusal(error)
            if isinstance(error, RunFolderError) and reason is None:
                raise
            raise RunFolderError(f"cannot write {path}: {reason or error}; {_GOES_ON}") from error


def _names_file_of(root: Path, error: Exception) -> bool:
    """Whether the error is of a file in the run folder, not of some input elsewhere."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(root.absolute())


def describe_origin(started: float, clock: float) -> dict[str, object]:
    """When, how long and by which software this process made a stage; begun at the time ``started`` (seconds since
    1970), when the monotonic clock stood at ``clock``."""
    return {
        "started": _utc(started),
        "finished": _utc(time.time()),
        "seconds": round(time.monotonic() - clock, 3),
        **describe_software(),
    }


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
