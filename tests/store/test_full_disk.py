"""A disk that is full, read-only or limited: one error that says what to do, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.store import Store, atomic_path

GOES_ON = "finished stages are kept, and the same command goes on where it stopped"

LIMITED = """
import os, resource, signal, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from safetensors.numpy import save_file
from tokenclean.errors import RunFolderError
from tokenclean.store import Store

store = Store(sys.argv[1])
numbers = np.random.default_rng(0).random(10_000)
writers = {
    "plain": lambda folder: (folder / "a").write_bytes(numbers.tobytes()) and {},
    "pyarrow": lambda folder: pq.write_table(pa.table({"a": numbers}), folder / "a"),
    "safetensors": lambda folder: save_file({"a": numbers}, folder / "a"),
    "manifest": lambda folder: {"a": numbers.tolist()},
}
store.stage("small", 1, {}, lambda folder: {"a": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name, write in writers.items():
    try:
        store.stage(name, 1, {}, write)
    except RunFolderError as error:
        print(error)
store.stage("smaller", 1, {}, lambda folder: {"a": 1})
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


def test_a_file_too_large_for_its_limit_whoever_writes_it(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 4
    for name, line in zip(("plain", "pyarrow", "safetensors", "manifest"), lines, strict=True):
        assert line.startswith(f"cannot write {tmp_path}/stages/{name}-")
        assert line.endswith(GOES_ON)
        assert "File too large" in line
        assert line.count("ulimit -f") == 1
    assert names(tmp_path / "stages") == ["small", "smaller"]


def write_text(path: Path) -> None:
    path.write_text("no room")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def write_atomically(path: Path) -> None:
    with atomic_path(path.with_name("b")) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("no room")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("write", [write_text, write_parquet, write_atomically])
def test_a_full_disk_whoever_meets_it(tmp_path, write):
    def make(folder):
        (folder / "a").symlink_to("/dev/full")
        write(folder / "a")

    with pytest.raises(RunFolderError, match=f"No space left on device.*; free some space .*{GOES_ON}") as caught:
        Store(tmp_path).stage("score", 1, {}, make)
    assert str(caught.value).count("free some space") == 1
    assert names(tmp_path / "stages") == []


def test_a_failing_cleanup_does_not_hide_the_error(tmp_path, monkeypatch):
    def fill_disk(folder):
        (folder / "half").write_text("half")
        monkeypatch.setattr(os, "unlink", be_read_only)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunFolderError, match="No space left"):
        Store(tmp_path).stage("score", 1, {}, fill_disk)


def be_read_only(*arguments, **options):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("refused", ["mkdir", "fsync", "rename", "replace"])
def test_a_run_folder_that_becomes_read_only(tmp_path, monkeypatch, refused):
    store = Store(tmp_path)
    monkeypatch.setattr(os, refused, be_read_only)
    with pytest.raises(RunFolderError, match=r"cannot write .*: Read-only file system; choose an output folder"):
        store.stage("score", 1, {}, lambda folder: None)
    monkeypatch.undo()
    assert names(tmp_path / "stages") == []


def test_a_run_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match=f"cannot use the run folder {root}: "):
            Store(root)
    monkeypatch.setattr(os, "mkdir", be_read_only)
    with pytest.raises(RunFolderError, match="Read-only file system; choose an output folder that can be written"):
        Store(tmp_path / "run")


def test_a_finished_run_on_a_read_only_disk_can_still_be_read(tmp_path, monkeypatch):
    Store(tmp_path).stage("score", 1, {}, lambda folder: None)
    for name in ("fsync", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, be_read_only)
    assert Store(tmp_path).stage("score", 1, {}, lambda folder: None).was_reused


def test_a_stage_whose_folder_is_taken_away(tmp_path):
    def make(folder):
        shutil.rmtree(folder)
        (folder / "a").write_text("a")

    with pytest.raises(RunFolderError, match="No such file or directory"):
        Store(tmp_path).stage("score", 1, {}, make)


def test_another_error_of_the_stage_passes_unchanged(tmp_path):
    def fail(folder):
        raise error

    for error in (
        FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path.parent / "none.bin")),
        PermissionError(errno.EACCES, "Permission denied", "/models/a"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        RunFolderError("of another kind"),
        PoolError("no"),
    ):
        with pytest.raises(type(error)) as caught:
            Store(tmp_path).stage("score", 1, {}, fail)
        assert caught.value is error
