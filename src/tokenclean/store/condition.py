"""The condition of a run folder: which stages are valid, stale, damaged or unfinished, and what is done about it.

Damaged stages move aside, leftovers are deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.store.files import file_hash
from tokenclean.store.layout import DAMAGED, FINISHED, RESULTS, SHORT_KEY, STAGES, UNFINISHED, UNFINISHED_FILE
from tokenclean.store.manifest import MANIFEST, FileEntry, list_files, read_manifest

_FAULTS_SHOWN = 5


@dataclass(frozen=True)
class StageState:
    """A stage's folder as found on disk.

    ``name``, ``version``, ``key``, ``what`` it holds, ``finished`` (UTC, ISO 8601) and ``depends_on`` (keys of the
    stages it was built on) come from the manifest. Where that cannot be read, name and key come from the
    folder's name, which has the first 12 characters of the key, and the rest is None or empty. ``faults``: see
    ``check_stage``.
    """

    name: str
    key: str
    path: Path
    size_bytes: int
    version: int | None = None
    finished: str | None = None
    faults: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    is_unfinished: bool = False
    what: str = ""

    @property
    def label(self) -> str:
        """Name and short key, as in the folder's name."""
        return f"{self.name}-{self.key[:SHORT_KEY]}"


def list_stages(folder: Path) -> list[StageState]:
    """All stages in a folder, checked, and those left unfinished, sorted by their folders' names."""
    if not folder.is_dir():
        return []
    states = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if path.name.startswith(".") and not UNFINISHED.fullmatch(path.name):
            continue
        try:
            states.append(_state(path))
        except FileNotFoundError:  # a run finished or cleared it just now
            continue
    return states


def _state(path: Path) -> StageState:
    match = UNFINISHED.fullmatch(path.name) or FINISHED.fullmatch(path.name)
    name, key = (match["name"] or RESULTS, match["key"]) if match else (path.name, path.name)
    size_bytes = sum(file.stat().st_size for file in list_files(path)[0].values())
    if path.name.startswith("."):
        return StageState(name, key, path, size_bytes, is_unfinished=True)
    state = StageState(name, key, path, size_bytes, faults=tuple(check_stage(path)))
    try:
        manifest = read_manifest(path)
    except RunFolderError:  # one of the faults
        return state
    return replace(
        state,
        name=manifest["stage"],
        version=manifest["version"],
        key=manifest["key"],
        finished=manifest["finished"],
        depends_on=tuple(manifest["depends_on"]),
        what=str(manifest["results"].get("what", "")),
    )


def judge(stages: Sequence[StageState], versions: Mapping[str, int]) -> dict[str, str]:
    """Why each stage is or isn't valid, by key; ``versions`` are those of the current code, by stage name.

    The text's first word is valid, stale, damaged, unfinished or unknown. Stale: the current code asks for another key,
    so the stage is never found again. A stage whose inputs are damaged or gone stays valid, and the text says so: its
    key names the inputs by their content, and it was computed while they were whole. (A killed run's unfinished folder
    has only the short key, so it never hides the finished stage.)
    """
    whole = {stage.key[:SHORT_KEY]: stage for stage in stages if not stage.is_unfinished}
    reasons: dict[str, str] = {}

    def reason(stage: StageState) -> str:
        if stage.key not in reasons:
            reasons[stage.key] = _own_reason(stage, versions) or inherited_reason(stage)
        return reasons[stage.key]

    def inherited_reason(stage: StageState) -> str:
        remarks, gone = ["valid"], 0
        for key in stage.depends_on:
            below = whole.get(key[:SHORT_KEY])
            if below is None:
                gone += 1
                continue
            state = reason(below).partition(" ")[0].rstrip(":,")
            if state in ("stale", "unknown"):
                return f"stale: built on {below.label}…, which is {state}"
            if state == "damaged":
                remarks.append(f"built on {below.label}…, which is damaged now")
        if gone:
            remarks.append(f"complete without the {gone} stage{'s' * (gone > 1)} it was built on, pruned or deleted")
        return ", ".join(remarks)

    for stage in stages:
        reason(stage)
    return reasons


def _own_reason(stage: StageState, versions: Mapping[str, int]) -> str | None:
    """Why the stage by itself is not valid; None where it is."""
    if stage.is_unfinished:
        return "unfinished: a run is making it, or was stopped while it did"
    if stage.faults:
        first, *others = stage.faults
        return f"damaged: {first}" + (f" (and {len(others)} more)" if others else "")
    if stage.name not in versions:
        return f"unknown stage: this version has no stage {stage.name}"
    if stage.version != versions[stage.name]:
        return f"stale: made by version {stage.version} of {stage.name}, the code is at version {versions[stage.name]}"
    return None


def check_stage(path: Path) -> list[str]:
    """What is wrong with the stage in the folder ``path``, a text for each fault; empty when it is whole.

    Whole: the manifest is as it was written and fits the folder's name, and the files are those it lists, byte for
    byte. Only reads.
    """
    try:
        files, others = list_files(path)
    except OSError as error:
        return [f"{path.name}: cannot be read ({error.strerror or error})"]
    faults = [f"{name}: neither a file nor a folder" for name in others]
    try:
        manifest = read_manifest(path)
    except RunFolderError as error:
        return [*faults, str(error)]
    name, key = manifest["stage"], manifest["key"][:SHORT_KEY]
    if path.name not in (key, f"{name}-{key}"):
        faults.append(f"{MANIFEST}: of {name}-{key}, but the folder is named {path.name}")
    listed = manifest["files"]
    for file in sorted(listed.keys() | files.keys() - {MANIFEST}):
        if fault := _file_fault(files.get(file), listed.get(file)):
            faults.append(f"{file}: {fault}")
    return faults


def _file_fault(path: Path | None, expected: FileEntry | None) -> str | None:
    if path is None:
        return "missing"
    if expected is None:
        return f"not listed in the {MANIFEST}"
    try:
        size_bytes = path.stat().st_size
        if size_bytes != expected["bytes"]:
            return f"{size_bytes} bytes, expected {expected['bytes']}"
        return None if file_hash(path) == expected["sha256"] else "sha256 differs from the manifest's"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def move_aside(root: Path, stage: Path, faults: Sequence[str]) -> str:
    """Move a damaged stage of the run folder ``root`` into its ``damaged/``; returns what happened, in a sentence."""
    damaged = root / DAMAGED
    damaged.mkdir(exist_ok=True)
    number, place = 0, damaged / stage.name
    while os.path.lexists(place):
        number += 1
        place = damaged / f"{stage.name}-{number}"
    os.rename(stage, place)
    shown = "; ".join(faults[:_FAULTS_SHOWN])
    more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
    moved = f"It was moved to {place.relative_to(root)} and will be recomputed"
    return f"{stage.name} failed its integrity check: {shown}{more}. {moved}"


def clear_leftovers(root: Path) -> str:
    """Delete the unfinished folders and files of dead runs, for the holder of the lock; returns what was found.

    Only what a writer of ours named is deleted: unfinished stages, and temporary files beside them.
    """
    places = [place for place in (root, root / STAGES, root / RESULTS) if place.is_dir()]
    leftovers = [path for place in places for path in place.iterdir() if _is_unfinished(path, root)]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # what stays is counted below
                path.unlink(missing_ok=True)
    if not leftovers:
        return ""
    kept = sum(path.exists() for path in leftovers)
    but = f", but {kept} of them cannot be deleted" if kept else ""
    return f"{root}: found {len(leftovers)} unfinished folders and files of stopped runs, cleared them{but}"


def _is_unfinished(path: Path, root: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_dir():
        return path.parent != root and UNFINISHED.fullmatch(path.name) is not None
    return path.is_file() and UNFINISHED_FILE.fullmatch(path.name) is not None
