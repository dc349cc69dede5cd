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

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.store import MANIFEST, Store, atomic_path, file_hash, fingerprint, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def write_answer(folder: Path) -> dict[str, int]:
    (folder / "answer.txt").write_text("42")
    return {"answer": 42}


def refuse(folder: Path) -> None:
    raise AssertionError("made again")


def test_a_stage_is_made_once_and_found_after(tmp_path):
    made = Store(tmp_path / "run").stage("score", 1, {"model": "a", "rows": [1, 2]}, write_answer)
    assert not made.was_reused
    assert made.path == tmp_path / "run" / "stages" / f"score-{made.key[:12]}"
    assert names(made.path) == ["answer.txt", MANIFEST]
    assert names(made.path.parent) == [made.path.name]
    assert {name: made.manifest[name] for name in ("stage", "version", "key", "inputs", "results")} == {
        "stage": "score",
        "version": 1,
        "key": made.key,
        "inputs": {"model": "a", "rows": [1, 2]},
        "results": {"answer": 42},
    }
    found = Store(tmp_path / "run").stage("score", 1, {"rows": [1, 2], "model": "a"}, refuse)
    assert found.was_reused
    assert (found.path, found.key, found.manifest) == (made.path, made.key, made.manifest)


def test_the_key_depends_on_name_version_and_inputs(tmp_path):
    store = Store(tmp_path)
    stages = [
        store.stage(name, version, inputs, lambda folder: None)
        for name, version, inputs in [
            ("a", 1, {}),
            ("b", 1, {}),
            ("a", 2, {}),
            ("a", 1, {"k": 0.6}),
            ("a", 1, {"k": 0.7}),
        ]
    ]
    assert not any(stage.was_reused for stage in stages)
    assert len({stage.path for stage in stages}) == len({stage.key for stage in stages}) == 5
    assert stages[0].manifest["results"] == {}


@pytest.mark.parametrize("error", [ValueError("no"), PoolError("no"), KeyboardInterrupt()])
def test_a_failing_make_leaves_nothing(tmp_path, error):
    def fail(folder):
        write_answer(folder)
        raise error

    store = Store(tmp_path)
    with pytest.raises(type(error)):
        store.stage("score", 1, {}, fail)
    assert names(tmp_path / "stages") == []
    assert not store.stage("score", 1, {}, write_answer).was_reused


def test_what_a_killed_process_left_is_no_stage(tmp_path):
    store = Store(tmp_path)
    path = store.stage("score", 1, {}, write_answer).path
    abandoned = path.rename(path.with_name(f".{path.name}.{os.getpid()}"))
    (abandoned / MANIFEST).unlink()
    assert not store.stage("score", 1, {}, write_answer).was_reused
    assert names(path.parent) == [path.name]


def test_another_process_finishes_first(tmp_path):
    store = Store(tmp_path)
    # The other process has another id, so its temporary folder is another one.
    with pytest.MonkeyPatch.context() as patch:

        def make(folder):
            patch.setattr(os, "getpid", lambda: -1)
            assert not Store(tmp_path).stage("score", 1, {}, write_answer).was_reused
            return {"answer": 0}

        found = store.stage("score", 1, {}, make)
    assert found.was_reused
    assert found.manifest["results"] == {"answer": 42}
    assert names(tmp_path / "stages") == [found.path.name]


def test_run_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match=f"cannot use the run folder {root}: "):
            Store(root)

    def be_read_only(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", be_read_only)
    with pytest.raises(RunFolderError, match="Read-only file system"):
        Store(tmp_path / "run")


def test_run_folder_that_cannot_be_written(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(Path, "mkdir", lambda self, **_: os.open(self / "no" / "folder", os.O_RDONLY))
    with pytest.raises(RunFolderError, match=f"cannot write {tmp_path}/stages/score-"):
        store.stage("score", 1, {}, write_answer)


def test_a_full_disk_is_the_run_folders_fault(tmp_path):
    def fill_disk(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunFolderError, match="No space left"):
        Store(tmp_path).stage("score", 1, {}, fill_disk)
    assert names(tmp_path / "stages") == []


def test_a_missing_input_is_not_the_run_folders_fault(tmp_path):
    def read_input(folder):
        (tmp_path.parent / "none.bin").read_bytes()

    with pytest.raises(FileNotFoundError) as caught:
        Store(tmp_path).stage("score", 1, {}, read_input)
    assert not isinstance(caught.value, RunFolderError)


def test_inputs_that_are_no_json_fail_before_the_work(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.stage("score", 1, {"path": tmp_path}, refuse)
    assert names(tmp_path / "stages") == []


def test_numbers_that_json_does_not_know_are_null_in_the_manifest(tmp_path):
    stage = Store(tmp_path).stage("score", 1, {"clip": math.inf}, lambda folder: {"loss": [math.nan, 1.5]})
    assert stage.manifest["inputs"] == {"clip": None}
    assert stage.manifest["results"] == {"loss": [None, 1.5]}
    assert Store(tmp_path).stage("score", 1, {"clip": math.inf}, refuse).was_reused
    assert not Store(tmp_path).stage("score", 1, {"clip": None}, write_answer).was_reused


def test_a_file_name_that_is_not_utf8_in_the_manifest(tmp_path):
    inputs = {"file": os.fsdecode(b"caf\xe9.jsonl"), "name": "é"}
    stage = Store(tmp_path).stage("score", 1, inputs, lambda folder: None)
    assert stage.manifest["inputs"] == inputs
    assert Store(tmp_path).stage("score", 1, inputs, refuse).was_reused


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
