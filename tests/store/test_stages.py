from __future__ import annotations

import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tokenclean.errors import PoolError, RunFolderError
from tokenclean.store import MANIFEST, Store, file_hash


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


def test_the_manifest_says_what_was_made_when_and_with_what(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecretsecret")

    def make(folder):
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "a.bin").write_bytes(b"abc")

    stage = Store(tmp_path).stage("score", 1, {}, make)
    manifest = stage.manifest
    digest = file_hash(stage.path / "deep" / "er" / "a.bin")
    assert manifest["files"] == {"deep/er/a.bin": {"bytes": 3, "sha256": digest}}
    started, finished = (datetime.fromisoformat(manifest[name]) for name in ("started", "finished"))
    assert timedelta(0) <= finished - started < timedelta(seconds=60)
    assert abs(datetime.now(UTC) - finished) < timedelta(seconds=60)
    assert 0 <= manifest["seconds"] < 60
    assert manifest["packages"].keys() >= {"python", "numpy", "torch", "transformers"}
    assert manifest["platform"]["processors"] == os.cpu_count()
    assert "secret" not in (stage.path / MANIFEST).read_text()


def test_everything_is_on_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def note_flush(file):
        events.append(("flush", Path(os.readlink(f"/proc/self/fd/{file}"))))
        fsync(file)

    def note_rename(source, target):
        events.append(("rename", Path(source)))
        rename(source, target)

    def make(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")

    store = Store(tmp_path.resolve())
    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "rename", note_rename)
    final = store.stage("score", 1, {}, make).path
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    renamed = events.index(("rename", temporary))
    before = {path for _, path in events[:renamed]}
    assert before >= {temporary / "inner" / "a", temporary / "inner", temporary / f".{MANIFEST}.{os.getpid()}.tmp"}
    assert events[renamed - 1] == ("flush", temporary)
    assert events[renamed + 1 :] == [("flush", final.parent)]


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe", "the manifest"])
def test_what_no_hash_describes_is_no_stage(tmp_path, kind):
    def make(folder):
        (tmp_path / "outside").mkdir()
        write_answer(folder)
        match kind:
            case "link":
                (folder / "odd").symlink_to("answer.txt")
            case "folder link":
                (folder / "odd").symlink_to(tmp_path / "outside")
            case "pipe":
                os.mkfifo(folder / "odd")
            case _:
                (folder / MANIFEST).write_text("{}")

    name = "the name is the store's" if kind == "the manifest" else "odd: neither a file nor a folder"
    with pytest.raises(RunFolderError, match=name):
        Store(tmp_path / "run").stage("score", 1, {}, make)
    assert names(tmp_path / "run" / "stages") == []


def test_results_lie_under_their_key(tmp_path):
    store = Store(tmp_path)
    made = store.stage("results", 1, {}, write_answer, within="results")
    assert made.path == tmp_path / "results" / made.key[:12]
    assert names(made.path) == ["answer.txt", MANIFEST]
    assert Store(tmp_path).stage("results", 1, {}, refuse, within="results").was_reused
    assert [state.name for state in store.stages("results")] == ["results"]
    assert store.stages() == []


def test_stages_are_listed_with_what_they_were_built_on(tmp_path):
    store = Store(tmp_path)
    base = store.stage("training", 3, {}, write_answer)
    top = store.stage("losses", 1, {"models": [{"start": base.key}], "tokens": "0" * 64}, lambda folder: None)
    (tmp_path / "stages" / ".losses-0123456789ab.77").mkdir()
    (tmp_path / "stages" / ".losses-0123456789ab.77" / "half").write_text("half")
    (tmp_path / "stages" / ".DS_Store").mkdir()
    unfinished, losses, training = store.stages()
    assert (training.name, training.version, training.key, training.path) == ("training", 3, base.key, base.path)
    assert training.size_bytes == 2 + (base.path / MANIFEST).stat().st_size
    assert training.finished == base.manifest["finished"]
    assert (training.faults, training.depends_on) == ((), ())
    assert (losses.key, losses.depends_on) == (top.key, (base.key,))
    assert unfinished.is_unfinished
    assert (unfinished.name, unfinished.key, unfinished.size_bytes) == ("losses", "0123456789ab", 4)


def test_a_listing_names_a_stage_whose_manifest_is_gone(tmp_path):
    store = Store(tmp_path)
    stage = store.stage("losses", 1, {}, write_answer)
    (stage.path / MANIFEST).unlink()
    (state,) = store.stages()
    assert (state.name, state.key, state.version) == ("losses", stage.key[:12], None)
    assert state.faults == (f"{MANIFEST}: missing",)
    assert names(tmp_path) == ["stages"]  # listing changes nothing
