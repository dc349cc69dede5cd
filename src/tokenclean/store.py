"""The run folder: each stage's result under the hash of everything it was made from, written atomically.

A stage's folder is named ``<stage>-<key>``; the key hashes the stage's name, its hand-raised version and its inputs
(recipe values, keys of the stages before it, hashes of files). The same inputs therefore find the same folder, and
another recipe never overwrites it. A stage is written under a temporary name, its ``manifest.json`` last, and renamed
when whole: a folder with its final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenclean.errors import RunFolderError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its key, the manifest, and whether it was found instead of made."""

    path: Path
    key: str
    manifest: Mapping[str, Any]
    was_reused: bool


class Store:
    """The stages of one run folder (see the module's text)."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        try:
            (self.root / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot use the run folder {self.root}: {error.strerror or error}") from error

    def stage(
        self, name: str, version: int, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any] | None]
    ) -> Stage:
        """Find the stage's result, or call ``make(folder)`` to write it; what ``make`` returns goes into the manifest.

        Where another process finishes the same stage first, its result counts. Raises RunFolderError where the folder
        cannot be written. A failing ``make`` leaves nothing behind.
        """
        key = fingerprint({"stage": name, "version": version, "inputs": inputs})
        final = self.root / "stages" / f"{name}-{key[:12]}"
        manifest_path = final / MANIFEST
        if manifest_path.is_file():
            return Stage(final, key, _read_json(manifest_path), True)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            started = time.time()
            results = dict(make(temporary) or {})
            manifest = {
                "stage": name,
                "version": version,
                "key": key,
                "inputs": inputs,
                "results": results,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 3),
            }
            write_json(temporary / MANIFEST, manifest)
            was_reused = not _rename_unless_made(temporary, final)
        except OSError as error:
            if isinstance(error, RunFolderError) or not _is_of_run_folder(error, self.root):
                raise
            raise RunFolderError(f"cannot write {final}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Stage(final, key, _read_json(manifest_path), was_reused)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_hash(path: Path | str) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well, flush it to disk and rename it to ``path``."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically (UTF-8, indented); NaN and infinities, which JSON does not know, become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        # A file name that is not UTF-8 holds lone surrogates; written with a backslash they are JSON's escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rename_unless_made(temporary: Path, final: Path) -> bool:
    """Rename the whole folder; False where another process has put the same stage there meanwhile."""
    try:
        os.rename(temporary, final)
    except OSError:
        if not (final / MANIFEST).is_file():
            raise
        return False
    return True


def _is_of_run_folder(error: OSError, root: Path) -> bool:
    """Whether writing the run folder failed (a full disk names no file), not the reading of some other file."""
    if error.filename is None or isinstance(error.filename, int):
        return error.errno is not None
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(root.absolute())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
