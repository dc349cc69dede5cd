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
from typing import Any, TypedDict

from tokenclean.errors import RunFolderError
from tokenclean.store.files import file_hash, fingerprint, flush, json_bytes, write_json

MANIFEST = "manifest.json"

_PACKAGES = ("tokenclean", "numpy", "torch", "transformers", "tokenizers", "peft", "bitsandbytes")


class FileEntry(TypedDict):
    """A file in a manifest."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What every manifest holds, beside ``started``, ``packages`` and ``platform``.

    ``depends_on``: keys of the run folder's stages among the inputs. ``finished``: UTC, ISO 8601. ``files``: by their
    paths below the folder.
    """

    stage: str
    version: int
    key: str
    inputs: dict[str, Any]
    results: dict[str, Any]
    depends_on: list[str]
    finished: str
    seconds: float
    files: dict[str, FileEntry]
    checksum: str


def describe_software() -> dict[str, object]:
    """What results may depend on besides their inputs: versions of Python and packages, kind of machine.

    No package is imported for it, and nothing of the environment is recorded.
    """
    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an extra
            continue
    machine = {"system": platform.system(), "machine": platform.machine(), "processors": os.cpu_count()}
    return {"packages": packages, "platform": machine}


def seal_folder(folder: Path, content: Mapping[str, object]) -> None:
    """Flush every file below ``folder`` to disk, then write the manifest: ``content``, ``files`` and ``checksum``.

    Raises RunFolderError for links and special files, which no hash describes, and where the manifest's name is taken.
    """
    files, others = list_files(folder)
    if others:
        raise RunFolderError(f"{folder / others[0]}: neither a file nor a folder; write a copy of what it refers to")
    if MANIFEST in files:
        raise RunFolderError(f"{folder / MANIFEST}: written by the stage, but the name is the store's; use another")
    for path in files.values():
        flush(path)
    for parent, _, _ in os.walk(folder):
        flush(Path(parent))
    entries = {name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in files.items()}
    # As it will be read: JSON turns tuples into lists and every key into a string.
    manifest = json.loads(json_bytes({**content, "files": entries}))
    write_json(folder / MANIFEST, {**manifest, "checksum": fingerprint(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest, where it is as it was written. Raises RunFolderError with the fault as its text."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{MANIFEST}: missing") from None
    except OSError as error:
        raise RunFolderError(f"{MANIFEST}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise RunFolderError(f"{MANIFEST}: not JSON ({error})") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= Manifest.__required_keys__:
        raise RunFolderError(f"{MANIFEST}: lacks keys that this version writes (was it an earlier version's?)")
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    # The bytes too: 1e-05 and 1E-05 are the same value.
    if fingerprint(rest) != manifest["checksum"] or json_bytes(manifest) != content:
        raise RunFolderError(f"{MANIFEST}: its content does not match its checksum")
    return Manifest(**manifest)


def list_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Files by their path below the folder (with ``/``), sorted; and the paths of links and special files.

    Raises OSError.
    """

    def stop(error: OSError) -> None:
        raise error

    files: dict[str, Path] = {}
    others: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        for path in (Path(parent, name) for name in (*folders, *names)):
            mode = path.lstat().st_mode
            name = path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode):
                files[name] = path
            elif not stat.S_ISDIR(mode):
                others.append(name)
    return dict(sorted(files.items())), sorted(others)
