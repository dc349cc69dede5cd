"""The manifest of a stage's folder: what made it, and the size and hash of every file in it.

``manifest.json`` holds what the store says of the stage (name, version, key, inputs, results, times, packages), under
``files`` every other file of the folder with its size and sha256, and under ``checksum`` the hash of all the rest. It
is written last. Empty folders are not recorded.
"""

from __future__ import annotations

import json
import os
import platform
import stat
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenclean.errors import RunFolderError
from tokenclean.store.files import file_hash, fingerprint, flush_file, flush_folder, json_bytes, write_json

MANIFEST = "manifest.json"

_KEYS = frozenset({"stage", "version", "key", "inputs", "results", "depends_on", "finished", "seconds", "files"})

_PACKAGES = ("tokenclean", "numpy", "torch", "transformers", "tokenizers", "peft", "bitsandbytes")


def describe_software() -> dict[str, Any]:
    """What results may depend on besides their inputs: versions of Python and packages, kind of machine.

    Nothing is imported for it, and nothing of the environment is told.
    """
    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an extra
            continue
    machine = {"system": platform.system(), "machine": platform.machine(), "processors": os.cpu_count()}
    return {"packages": packages, "platform": machine}


def seal_folder(folder: Path, content: Mapping[str, Any]) -> None:
    """Flush every file below ``folder`` to disk, then write the manifest: ``content``, ``files`` and ``checksum``.

    Raises RunFolderError for links and special files, which no hash describes, and where the manifest's name is taken.
    """
    files, others = _scan(folder)
    if others:
        raise RunFolderError(f"{folder / others[0]}: neither a file nor a folder; write a copy of what it stands for")
    if (folder / MANIFEST).exists():
        raise RunFolderError(f"{folder / MANIFEST}: written by the stage, but the name is the store's; use another")
    for path in files.values():
        flush_file(path)
    for parent, _, _ in os.walk(folder):
        flush_folder(Path(parent))
    listed = {name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in files.items()}
    # As it will be read: JSON turns tuples into lists and every key into a string.
    manifest = json.loads(json_bytes({**content, "files": listed}))
    write_json(folder / MANIFEST, {**manifest, "checksum": fingerprint(manifest)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, where it is what was written. Raises RunFolderError whose text is the fault in words."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{MANIFEST}: missing") from None
    except OSError as error:
        raise RunFolderError(f"{MANIFEST}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RunFolderError(f"{MANIFEST}: is no JSON ({error})") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= _KEYS | {"checksum"}:
        raise RunFolderError(f"{MANIFEST}: lacks what this version writes into it (an earlier version's?)")
    # The bytes too: 1e-05 and 1E-05 are the same value.
    if _checksum(manifest) != manifest["checksum"] or json_bytes(manifest) != content:
        raise RunFolderError(f"{MANIFEST}: its content does not fit its checksum")
    return manifest


def check_stage(path: Path) -> list[str]:
    """What is wrong with the stage in the folder ``path``, a text for each fault; empty when it is whole.

    Whole: the manifest is as it was written and fits the folder's name, and the files are those it lists, byte for
    byte. Only reads.
    """
    try:
        files, others = _scan(path)
    except OSError as error:
        return [f"{path.name}: cannot be read ({error.strerror or error})"]
    faults = [f"{name}: neither a file nor a folder" for name in others]
    try:
        manifest = read_manifest(path)
    except RunFolderError as error:
        return [*faults, str(error)]
    name, key = manifest["stage"], manifest["key"][:12]
    if path.name not in (key, f"{name}-{key}"):
        faults.append(f"{MANIFEST}: of {name}-{key}, but the folder is named {path.name}")
    listed = manifest["files"]
    for file in sorted(listed.keys() | files.keys() - {MANIFEST}):
        if fault := _file_fault(files.get(file), listed.get(file)):
            faults.append(f"{file}: {fault}")
    return faults


def folder_bytes(path: Path) -> int:
    """Size of all files below the folder."""
    return sum(file.stat().st_size for file in _scan(path)[0].values())


def _file_fault(path: Path | None, expected: Mapping[str, Any] | None) -> str | None:
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


def _scan(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by their path below the folder (with ``/``), in order; and what is neither a file nor a folder."""

    def give_up(error: OSError) -> None:
        raise error

    files: dict[str, Path] = {}
    others: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=give_up):
        for path in (Path(parent, name) for name in (*folders, *names)):
            mode = path.lstat().st_mode
            name = path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode):
                files[name] = path
            elif not stat.S_ISDIR(mode):
                others.append(name)
    return dict(sorted(files.items())), sorted(others)


def _checksum(manifest: Mapping[str, Any]) -> str:
    return fingerprint({key: value for key, value in manifest.items() if key != "checksum"})
