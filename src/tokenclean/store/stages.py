"""The run folder: each stage's result under the hash of everything it was made from, written whole or not at all.

A stage's folder is named ``<stage>-<key>``; the key hashes the stage's name, its hand-raised version and its inputs
(recipe values, keys of the stages before it, hashes of files). The same inputs therefore find the same folder, and
another recipe never overwrites it. A stage is written under a temporary name, flushed to disk, its ``manifest.json``
last, and renamed when whole. A stage that is found is checked against its manifest before it is used; a damaged one is
moved to ``damaged/`` and made again. Only folders and files with temporary names are ever deleted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenclean.errors import RunFolderError
from tokenclean.store.files import disk_refusal, fingerprint, flush_folder
from tokenclean.store.lock import RunLock, read_holder
from tokenclean.store.manifest import MANIFEST, check_stage, describe_software, folder_bytes, read_manifest, seal_folder
from tokenclean.store.stage_report import SHORT_KEY, StageState

STAGES, RESULTS, DAMAGED = "stages", "results", "damaged"

# Name (none for results), short key, and for a folder that is being written the process that writes it.
_FINAL = re.compile(r"(?:(?P<name>.+)-)?(?P<key>[0-9a-f]{12})")
_TEMPORARY = re.compile(r"\.(?:(?P<name>.+)-)?(?P<key>[0-9a-f]{12})\.-?\d+")
_TEMPORARY_FILE = re.compile(r"\..+\.-?\d+\.tmp")
_TOLD_FAULTS = 5
_GOES_ON = "finished stages are kept, and the same command goes on where it stopped"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its key, the manifest, and whether it was found instead of made."""

    path: Path
    key: str
    manifest: Mapping[str, Any]
    was_reused: bool


class Store:
    """The stages of one run folder (see the module's text). ``note(text)`` is told of damage and of what is cleared."""

    def __init__(self, root: Path | str, note: Callable[[str], None] = logger.warning) -> None:
        self.root = Path(root)
        self._note = note
        self._whole: set[Path] = set()
        try:
            (self.root / STAGES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot use the run folder {root}: {disk_refusal(error) or error}") from error
        self._lock = RunLock(self.root, note)

    def stage(
        self,
        name: str,
        version: int,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any] | None],
        within: str = STAGES,
    ) -> Stage:
        """Find the stage's result, or call ``make(folder)`` to write it; what ``make`` returns goes into the manifest,
        its ``what`` being a few words on what the stage holds.

        ``within``: the folder of the run folder that holds it; outside ``stages`` it is named by its key alone. What is
        found is checked once by each Store. Where another process finishes the same stage first, its result counts.

        A failing ``make`` leaves nothing behind, and its error passes unchanged, but for a disk that is full, read-only
        or gone: this is a RunFolderError that says what to do, as is a link or special file in the stage.
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
            results = self._call(make, temporary, final)
            manifest = {
                "stage": name,
                "version": version,
                "key": key,
                "inputs": inputs,
                "results": results,
                "depends_on": self._stages_named_in(inputs),
                "started": _utc(started),
                "finished": _utc(time.time()),
                "seconds": round(time.monotonic() - clock, 3),
                **describe_software(),
            }
            with self._writing(final):
                seal_folder(temporary, manifest)
                return self._publish(temporary, final, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other run out of the run folder while the block lasts; re-entrant in one Store.

        The operating system drops the lock with its process, so what a killed run left blocks nobody (``run_lock``
        says what is done on file systems without locks). Who takes the lock clears the temporary folders and files of
        dead runs away, so every process that makes stages has to hold it. Raises RunFolderError naming the process
        that holds it.
        """
        is_first = self._lock.acquire()
        try:
            if is_first:
                self._clear_leftovers()
            yield
        finally:
            self._lock.release()

    def holder(self) -> Mapping[str, Any] | None:
        """Who holds the lock (pid, host, started, command), without taking it; None when it is free."""
        return read_holder(self.root)

    def stages(self, within: str = STAGES) -> list[StageState]:
        """All stages of the run folder, checked, and what was left unfinished, in the order of their folders' names."""
        folder = self.root / within
        if not folder.is_dir():
            return []
        states = []
        for path in sorted(path for path in folder.iterdir() if path.is_dir()):
            try:
                if _TEMPORARY.fullmatch(path.name) or not path.name.startswith("."):
                    states.append(_state(path))
            except FileNotFoundError:  # a run finished or cleared it just now
                continue
        return states

    def _find(self, final: Path, key: str) -> Stage | None:
        """The stage in the folder ``final``; None where there is none, or a damaged one, which is moved away."""
        if not os.path.lexists(final):
            return None
        faults = [] if final in self._whole else check_stage(final)
        if not faults:
            manifest = read_manifest(final)
            if manifest["key"] == key:
                self._whole.add(final)
                return Stage(final, key, manifest, True)
            faults = [f"{MANIFEST}: key {manifest['key']}, expected {key}"]
        self._set_aside(final, faults)
        return None

    def _set_aside(self, path: Path, faults: list[str]) -> None:
        damaged = self.root / DAMAGED
        damaged.mkdir(exist_ok=True)
        number, place = 0, damaged / path.name
        while os.path.lexists(place):
            number += 1
            place = damaged / f"{path.name}-{number}"
        os.rename(path, place)
        told = "; ".join(faults[:_TOLD_FAULTS])
        more = f"; and {len(faults) - _TOLD_FAULTS} more" if len(faults) > _TOLD_FAULTS else ""
        kept = place.relative_to(self.root)
        self._note(f"{path.name} is not what was written: {told}{more}. It is kept as {kept}, and made again")

    def _publish(self, temporary: Path, final: Path, key: str) -> Stage:
        """Give the whole folder its final name, unless another process has put the same stage there meanwhile."""
        try:
            os.rename(temporary, final)
        except OSError:
            if (found := self._find(final, key)) is not None:
                return found
            os.rename(temporary, final)  # what was in the way was damaged, and has been moved
        flush_folder(final.parent)
        self._whole.add(final)
        return Stage(final, key, read_manifest(final), False)

    def _stages_named_in(self, inputs: Mapping[str, Any]) -> list[str]:
        """Keys of this folder's stages among the inputs."""
        present = {match["key"] for path in (self.root / STAGES).iterdir() if (match := _FINAL.fullmatch(path.name))}
        return sorted({text for text in _texts(inputs) if len(text) == 64 and text[:SHORT_KEY] in present})

    def _clear_leftovers(self) -> None:
        """Delete the temporary folders and files of runs that are dead, since this process holds the lock."""
        places = [place for place in (self.root, self.root / STAGES, self.root / RESULTS) if place.is_dir()]
        leftovers = [path for place in places for path in place.iterdir() if _is_temporary(path, self.root)]
        for path in leftovers:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # what stays is told below
                    path.unlink(missing_ok=True)
        if leftovers:
            kept = sum(path.exists() for path in leftovers)
            but = f", but {kept} of them cannot be deleted" if kept else ""
            self._note(
                f"{self.root}: found {len(leftovers)} unfinished folders and files of stopped runs, cleared them{but}"
            )

    def _call(self, make: Callable[[Path], Mapping[str, Any] | None], temporary: Path, final: Path) -> dict[str, Any]:
        try:
            return dict(make(temporary) or {})
        except Exception as error:
            reason = disk_refusal(error, place=final.name)
            if reason is None and _names_file_of(self.root, error):
                reason = str(error)
            if reason is None:
                raise
            raise RunFolderError(f"cannot write {final}: {reason}; {_GOES_ON}") from error

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """The store's own reading and writing: whatever the system refuses is the run folder's fault."""
        try:
            yield
        except OSError as error:
            reason = disk_refusal(error)
            if isinstance(error, RunFolderError) and reason is None:
                raise
            raise RunFolderError(f"cannot write {path}: {reason or error}; {_GOES_ON}") from error


def _state(path: Path) -> StageState:
    """The folder's state. Raises FileNotFoundError where the folder goes away meanwhile."""
    match = _TEMPORARY.fullmatch(path.name) or _FINAL.fullmatch(path.name)
    name, key = (match["name"] or RESULTS, match["key"]) if match else (path.name, path.name)
    size_bytes = folder_bytes(path)
    if path.name.startswith("."):
        return StageState(name, None, key, path, size_bytes, None, None, is_unfinished=True)
    faults = tuple(check_stage(path))
    try:
        manifest = read_manifest(path)
    except RunFolderError:  # one of the faults
        return StageState(name, None, key, path, size_bytes, None, None, faults)
    depends_on = tuple(manifest["depends_on"])
    finished, seconds = manifest["finished"], manifest["seconds"]
    return StageState(
        manifest["stage"],
        manifest["version"],
        manifest["key"],
        path,
        size_bytes,
        finished,
        seconds,
        faults,
        depends_on,
        what=str(manifest["results"].get("what", "")),
    )


def _is_temporary(path: Path, root: Path) -> bool:
    """Whether a writer of ours gave the name, and the thing is what it would have made."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return path.parent != root and _TEMPORARY.fullmatch(path.name) is not None
    return path.is_file() and _TEMPORARY_FILE.fullmatch(path.name) is not None


def _names_file_of(root: Path, error: Exception) -> bool:
    """Whether the error is of a file in the run folder, not of some input elsewhere."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(root.absolute())


def _texts(value: Any) -> Iterator[str]:
    """All texts that are values somewhere in a JSON-able value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
