"""Damage of any kind is seen before a stage is used; the damaged folder is kept, and the stage made again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.errors import RunFolderError
from tokenclean.store import Store
from tokenclean.store.condition import check_stage
from tokenclean.store.files import fingerprint, json_bytes
from tokenclean.store.manifest import MANIFEST, read_manifest, seal_folder

TEXT = st.text(st.characters())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=4),
    max_leaves=10,
)


def write_losses(folder: Path) -> dict[str, Any]:
    (folder / "inner").mkdir()
    (folder / "losses.txt").write_bytes(b"1.25 0.5\n")
    (folder / "inner" / "empty").write_bytes(b"")
    return {"mean": 1e-05, "name": os.fsdecode(b"\xff")}  # both can be spelled in two ways in JSON


@pytest.fixture
def stage(tmp_path) -> Path:
    return Store(tmp_path / "run").stage("losses", 1, {"model": "a"}, write_losses).path


def edits(value: Any) -> Iterator[Any]:
    """The JSON value with one thing in it changed, for every thing in it."""
    if isinstance(value, dict):
        for key in value:
            yield {name: inner for name, inner in value.items() if name != key}
            yield from ({**value, key: edited} for edited in edits(value[key]))
        yield {**value, "further": 0}
    elif isinstance(value, list):
        yield [*value, 0]
    elif isinstance(value, str):
        yield from (value + "x", value[:-1] if value else None)
    elif isinstance(value, int | float):
        yield from (value + 1, -value - 1, str(value))
    if value is not None:
        yield None


@pytest.mark.slow
def test_every_flipped_bit_is_seen(stage):
    for path in (stage / "losses.txt", stage / MANIFEST):
        content = path.read_bytes()
        for place in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            faults = check_stage(stage)
            assert faults, (path.name, place)
            assert faults[0].startswith(path.name)
        path.write_bytes(content)
    assert check_stage(stage) == []


def test_every_truncation_is_seen(stage):
    for path in (stage / "losses.txt", stage / MANIFEST):
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            assert check_stage(stage), (path.name, length)
        path.write_bytes(content)
    (stage / "losses.txt").write_bytes(b"1.25")
    assert check_stage(stage) == ["losses.txt: 4 bytes, expected 9"]


def test_every_edit_of_the_manifest_is_seen(stage):
    manifest = read_manifest(stage)
    edited = list(edits(manifest))
    assert len(edited) > 60
    for value in edited:
        (stage / MANIFEST).write_bytes(json_bytes(value))
        assert check_stage(stage), value
    (stage / MANIFEST).write_text(json.dumps(manifest))  # the same content, not the same bytes
    assert check_stage(stage) == [f"{MANIFEST}: its content does not match its checksum"]


def test_a_changed_file_is_seen_even_where_size_and_time_stay(stage):
    before = (stage / "losses.txt").stat()
    (stage / "losses.txt").write_bytes(b"9.25 0.5\n")
    os.utime(stage / "losses.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check_stage(stage) == ["losses.txt: sha256 differs from the manifest's"]


def test_missing_and_further_files_are_seen(stage):
    (stage / "losses.txt").unlink()
    (stage / "inner" / "more").write_text("")
    (stage / "link").symlink_to("inner/empty")
    assert check_stage(stage) == [
        "link: neither a file nor a folder",
        f"inner/more: not listed in the {MANIFEST}",
        "losses.txt: missing",
    ]
    (stage / MANIFEST).unlink()
    assert check_stage(stage)[-1] == f"{MANIFEST}: missing"


def test_a_folder_under_another_stages_name_is_seen(stage):
    other = stage.rename(stage.with_name("losses-0123456789ab"))
    assert check_stage(other) == [f"{MANIFEST}: of {stage.name}, but the folder is named {other.name}"]


def test_what_is_no_folder_is_no_stage(tmp_path, stage):
    assert check_stage(tmp_path / "none") == ["none: cannot be read (No such file or directory)"]
    assert check_stage(stage / "losses.txt") == ["losses.txt: cannot be read (Not a directory)"]


def test_the_manifest_of_an_earlier_version_is_seen(stage):
    old = {"stage": "losses", "version": 1, "key": read_manifest(stage)["key"], "inputs": {}, "results": {}}
    for manifest in (old, {**old, "checksum": fingerprint(old)}, [], None):
        (stage / MANIFEST).write_bytes(json_bytes(manifest))
        assert check_stage(stage) == [f"{MANIFEST}: lacks keys that this version writes (was it an earlier version's?)"]


@given(content=st.dictionaries(TEXT, VALUES, max_size=4))
def test_any_manifest_is_read_as_it_was_written(content):
    named = {"stage": "a", "version": 1, "key": "0" * 64, "inputs": content, "results": content, "depends_on": []}
    named |= {"finished": "", "seconds": 0}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "a-000000000000")
        folder.mkdir()
        (folder / "b").write_bytes(b"b")
        seal_folder(folder, named)
        manifest = read_manifest(folder)
        assert check_stage(folder) == []
        assert json_bytes(manifest) == (folder / MANIFEST).read_bytes()
        assert list(manifest["files"]) == ["b"]


def damage(stage: Path) -> None:
    (stage / "losses.txt").write_bytes(b"1.25 0.6\n")


def test_a_damaged_stage_is_kept_told_and_made_again(tmp_path, stage):
    root = tmp_path / "run"
    for number in ("", "-1", "-2"):
        damage(stage)
        reported: list[str] = []
        again = Store(root, reported.append).stage("losses", 1, {"model": "a"}, write_losses)
        assert not again.was_reused
        assert again.path == stage
        assert check_stage(stage) == []
        (text,) = reported
        assert "losses.txt: sha256 differs from the manifest's" in text
        assert f"damaged/{stage.name}{number}" in text
        assert (root / "damaged" / f"{stage.name}{number}" / "losses.txt").read_bytes() == b"1.25 0.6\n"


def test_results_are_checked_too(tmp_path):
    store = Store(tmp_path)
    path = store.stage("results", 1, {}, write_losses, within="results").path
    damage(path)
    assert not Store(tmp_path, lambda text: None).stage("results", 1, {}, write_losses, within="results").was_reused
    assert os.listdir(tmp_path / "damaged") == [path.name]


def test_another_key_of_the_same_first_characters_is_not_taken_for_this_one(tmp_path, stage, monkeypatch):
    key = read_manifest(stage)["key"]
    monkeypatch.setattr("tokenclean.store.stages.fingerprint", lambda value: key[:12] + "0" * 52)
    reported: list[str] = []
    assert not Store(tmp_path / "run", reported.append).stage("losses", 1, {"model": "b"}, write_losses).was_reused
    assert f"key {key}, expected {key[:12]}0" in reported[0]


def test_a_folder_without_a_manifest_is_not_a_stage(tmp_path, stage):
    shutil.rmtree(stage)
    stage.mkdir()
    reported: list[str] = []
    assert not Store(tmp_path / "run", reported.append).stage("losses", 1, {"model": "a"}, write_losses).was_reused
    assert f"{MANIFEST}: missing" in reported[0]


def test_a_damaged_folder_put_there_while_the_stage_is_made_is_moved_too(tmp_path, stage):
    def make(folder):
        stage.mkdir()
        damage(stage)
        return write_losses(folder)

    shutil.rmtree(stage)
    assert not Store(tmp_path / "run", lambda text: None).stage("losses", 1, {"model": "a"}, make).was_reused
    assert check_stage(stage) == []
    assert (tmp_path / "run" / "damaged" / stage.name / "losses.txt").exists()


def test_a_stage_is_checked_once_by_each_store(tmp_path, stage):
    store = Store(tmp_path / "run")
    assert store.stage("losses", 1, {"model": "a"}, write_losses).was_reused
    damage(stage)
    assert store.stage("losses", 1, {"model": "a"}, write_losses).was_reused
    assert not Store(tmp_path / "run", lambda text: None).stage("losses", 1, {"model": "a"}, write_losses).was_reused


def test_damage_that_cannot_be_moved_away_stops_the_run(tmp_path, stage):
    damage(stage)
    (tmp_path / "run" / "damaged").write_text("a file")
    with pytest.raises(RunFolderError, match=r"cannot write .*damaged"):
        Store(tmp_path / "run").stage("losses", 1, {"model": "a"}, write_losses)
    assert check_stage(stage) == ["losses.txt: sha256 differs from the manifest's"]
