"""What is wrong with a run folder, and what is done about it: damaged stages move aside, leftovers are deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tokenclean.errors import RunFolderError
from tokenclean.store.files import file_hash
from tokenclean.store.layout import DAMAGED, RESULTS, SHORT_KEY, STAGES, UNFINISHED, UNFINISHED_FILE
from tokenclean.store.manifest import MANIFEST, FileEntry, list_files, read_manifest

_FAULTS_SHOWN = 5


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
