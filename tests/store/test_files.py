"""Atomic files, hashes, and what a disk's refusal is called."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import RunFolderError
from tokenclean.store.files import (
    atomic_folder,
    atomic_path,
    disk_refusal,
    file_hash,
    fingerprint,
    flush,
    json_bytes,
    write_json,
)

TEXT = st.text(st.characters())  # lone surrogates too: names of files that are not UTF-8
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@given(value=JSON)
def test_fingerprint_is_independent_of_key_order(value):
    def reverse(value):
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in reversed(value)}
        return [reverse(v) for v in value] if isinstance(value, list) else value

    assert fingerprint(value) == fingerprint(reverse(value))
    assert len(fingerprint(value)) == 64


def test_fingerprint_tells_values_apart():
    values = [None, False, 0, "0", [], {}, [0], [[0]], [1, 2], [2, 1], {"a": 1}, {"a": "1"}, {"b": 1}]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_fingerprint_is_the_hash_of_compact_json():
    value = {"b": [1, 0.5, None, True], "a": "é"}
    assert fingerprint(value) == hashlib.sha256('{"a":"é","b":[1,0.5,null,true]}'.encode()).hexdigest()


def test_file_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_atomic_path_replaces_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("one")
        assert not path.exists()
    with atomic_path(str(path)) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert names(path.parent) == ["a.txt"]


def test_atomic_path_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def break_off():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        break_off()
    assert (names(tmp_path), path.read_text()) == (["a.txt"], "old")


def test_atomic_path_names_the_file_it_cannot_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with pytest.raises(RunFolderError, match=f"cannot write {path}: "):
            write_json(path, {})
    with pytest.raises(RunFolderError, match=f"cannot write {tmp_path}/b.txt"), atomic_path(tmp_path / "b.txt"):
        pass  # nothing written
    monkeypatch.setattr(os, "fsync", lambda file: os.open(tmp_path / "none", os.O_RDONLY))
    with pytest.raises(RunFolderError, match="No such file"):
        write_json(tmp_path / "c.json", {})
    assert names(tmp_path) == ["file", "folder"]


def test_write_json(tmp_path):
    write_json(tmp_path / "a.json", {"z": "é", "a": [1.5, None]})
    assert (tmp_path / "a.json").read_bytes().startswith('{\n  "z": "é"'.encode())
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"z": "é", "a": [1.5, None]}
    write_json(tmp_path / "a.json", {"a": (math.nan, {"b": -math.inf}), 1: True})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"a": [None, {"b": None}], "1": True}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", {1, 2})
    assert names(tmp_path) == ["a.json"]


@given(value=JSON)
def test_json_that_was_read_is_written_as_it_was(value):
    content = json_bytes(json.loads(json_bytes(value)))
    assert json_bytes(json.loads(content)) == content


def test_a_folder_that_cannot_be_flushed_is_no_fault(tmp_path, monkeypatch):
    def refuse_with(number):
        def fsync(file):
            raise OSError(number, os.strerror(number))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse_with(errno.EINVAL))
    flush(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        flush(tmp_path)


REFUSALS = {
    OSError(errno.ENOSPC, "No space left on device"): "free some space",
    OSError(errno.EDQUOT, "Disk quota exceeded"): "quota raised",
    OSError("Error writing bytes to file. Detail: [errno 27] File too large"): "ulimit -f",
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"): "free some space",
    RuntimeError("writer: Read-only file system"): "can be written",
    PermissionError(errno.EACCES, "Permission denied", "/runs/a/stages/x-1"): "can be written",
}


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: str(error)[:30])
def test_a_disks_refusal_says_what_to_do(error):
    assert REFUSALS[error] in (disk_refusal(error, place="x-1") or "")
    outer = ValueError("the writer failed")
    outer.__cause__ = error
    assert disk_refusal(outer, place="x-1") == disk_refusal(error, place="x-1")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("28"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x-1"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        PermissionError(errno.EACCES, "Permission denied", "/models/weights.safetensors"),
        RuntimeError("I/O error: Permission denied (os error 13)"),
    ],
    ids=repr,
)
def test_another_error_is_no_refusal(error):
    assert disk_refusal(error, place="x-1") is None


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def stop_halfway(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyError

    final = tmp_path / "deep" / "out"
    with pytest.raises(KeyError), atomic_folder(final) as folder:
        stop_halfway(folder)
    assert list(tmp_path.rglob("*half*")) == []
    final.mkdir()  # an empty one is taken over
    with atomic_folder(final) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("whole")
        assert list(final.iterdir()) == []
    assert (final / "inner" / "file").read_text() == "whole"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_folder_never_takes_the_place_of_something(kind, tmp_path):
    final = tmp_path / "out"
    if kind == "folder":
        final.mkdir()
        (final / "mine").write_text("mine")
    elif kind == "file":
        final.write_text("mine")
    else:
        final.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"out: exists and is not an empty folder"), atomic_folder(final):
        pytest.fail("the block must not run")
    assert os.path.lexists(final)


def test_a_disk_that_refuses_a_folder_is_told(tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot write .*out: .*free some space"), atomic_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):  # of some input, not of the disk
        open(tmp_path / "missing").close()
    assert list(tmp_path.iterdir()) == []
