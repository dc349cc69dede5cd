"""One run at a time: between objects, between processes, after a kill, and on file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenclean.errors import RunFolderError
from tokenclean.store import Store
from tokenclean.store.lock import LOCK, RECORD, describe_process, process_mark

HOLDER = """
import sys, time
from tokenclean.store import Store

def make(folder):
    (folder / "half").write_text("half")
    print("making", flush=True)
    time.sleep(600)

store = Store(sys.argv[2])
with store.lock():
    store.stage("base", 1, {}, lambda folder: None)
    store.stage("score", 1, {}, make)
"""


@pytest.fixture
def run(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path`` and is in the middle of a stage."""
    command = [sys.executable, "-c", HOLDER, "run", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "making\n"
        yield process
        process.kill()


def refused(store: Store, words: str) -> None:
    with pytest.raises(RunFolderError, match=words), store.lock():
        pass


def test_a_killed_run_blocks_nobody_and_its_leftovers_are_cleared(tmp_path, run):
    reported: list[str] = []
    store = Store(tmp_path, reported.append)
    refused(
        store, rf"in use by process {run.pid} \(-c run\) on {platform.node()} since 20.*Z: wait for it, stop it, or"
    )
    holder = store.holder()
    assert holder is not None
    assert holder["pid"] == run.pid

    run.kill()
    run.wait()
    assert (tmp_path / RECORD).exists()
    assert store.holder() is None
    (half,) = (tmp_path / "stages").glob(".score-*")
    with store.lock():
        assert not half.exists()
        assert reported == [f"{tmp_path}: found 1 unfinished folders and files of stopped runs, cleared them"]
        assert store.stage("base", 1, {}, lambda folder: None).was_reused
        assert not store.stage("score", 1, {}, lambda folder: None).was_reused


def test_the_lock_is_reentrant_in_its_store_and_keeps_another_out(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    ours = tmp_path / "stages" / ".score-0123456789ab.1"
    with first.lock():
        ours.mkdir()
        with first.lock():
            assert ours.exists()
            refused(second, f"in use by process {os.getpid()} ")
        refused(second, "choose another output or name")
        assert second.holder() == first.holder() == json.loads((tmp_path / RECORD).read_bytes())
    assert first.holder() is None
    with second.lock():
        refused(first, "in use")


def test_the_lock_is_free_after_an_error(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no"), store.lock():
        raise ValueError("no")
    with Store(tmp_path).lock():
        pass


def test_only_temporary_names_are_cleared(tmp_path):
    stages, results = tmp_path / "stages", tmp_path / "results"
    kept = [stages / ".git", stages / ".mine.77", stages / "score-0123456789ab", tmp_path / ".x-0123456789ab.7"]
    cleared = [stages / ".score-0123456789ab.77", results / ".0123456789ab.1"]
    for folder in (*kept, *cleared):
        folder.mkdir(parents=True)
        (folder / "a").write_text("a")
    (tmp_path / "outside").mkdir()
    links = [stages / ".link-0123456789ab.77", stages / ".link.77.tmp"]
    for link in links:
        link.symlink_to(tmp_path / "outside")
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / f".{RECORD}.77.tmp").write_text("ours")
    reported: list[str] = []
    with Store(tmp_path, reported.append).lock():
        assert all((folder / "a").exists() for folder in kept)
        assert not any(folder.exists() for folder in cleared)
        assert all(link.is_symlink() for link in links)
        assert (tmp_path / "notes.tmp").exists()
        assert not (tmp_path / f".{RECORD}.77.tmp").exists()
        assert reported == [f"{tmp_path}: found 3 unfinished folders and files of stopped runs, cleared them"]


def test_leftovers_that_cannot_be_deleted_are_told(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    reported: list[str] = []
    store = Store(tmp_path, reported.append)
    (tmp_path / ".table.md.77.tmp").write_text("half")
    (tmp_path / "stages" / ".score-0123456789ab.77").mkdir()
    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(os, "rmdir", refuse)
    with store.lock():
        assert reported[0].endswith(
            "found 2 unfinished folders and files of stopped runs, cleared them, but 2 of them cannot be deleted"
        )


def test_a_run_folder_that_cannot_be_locked(tmp_path):
    store = Store(tmp_path)
    (tmp_path / LOCK).mkdir()
    refused(store, f"cannot lock the run folder {tmp_path}: ")


def test_a_lock_whose_record_cannot_be_written_is_given_back(tmp_path):
    store = Store(tmp_path)
    (tmp_path / RECORD).mkdir()
    refused(store, f"cannot write {tmp_path / RECORD}")
    (tmp_path / RECORD).rmdir()
    with Store(tmp_path).lock():
        pass


def test_the_record_tells_no_argument_but_the_subcommand(monkeypatch):
    for arguments, command in [
        (["/venv/bin/tokenclean", "run", "--token", "secret"], "tokenclean run"),
        (["/site-packages/tokenclean/__main__.py", "demo"], "tokenclean demo"),
        (["/venv/bin/tokenclean", "/home/me/recipe.yaml"], "tokenclean"),
        (["/home/me/script.py", "hf_Secret0"], "script.py"),
        ([""], ""),
    ]:
        monkeypatch.setattr(sys, "argv", arguments)
        assert describe_process()["command"] == command


def test_a_process_that_is_dead_but_not_yet_waited_for_runs_no_more():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process_mark(process.pid)
        process.kill()
        deadline = time.monotonic() + 10
        while process_mark(process.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process_mark(process.pid) is None
    assert process_mark(process.pid) is None


class TestFileSystemWithoutLocks:
    @pytest.fixture(autouse=True, params=[errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP], ids=errno.errorcode.get)
    def _without_locks(self, request, monkeypatch):
        def flock(*arguments):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)

    def leave(self, root: Path, **fields) -> None:
        (root / RECORD).write_text(json.dumps({**describe_process(), **fields}))

    def test_the_record_keeps_others_out(self, tmp_path):
        reported: list[str] = []
        store = Store(tmp_path, reported.append)
        with store.lock(), store.lock():
            refused(Store(tmp_path), f"in use by process {os.getpid()} ")
            assert store.holder() is not None
        assert reported == [f"{tmp_path}: its file system has no locks; only {RECORD} keeps other runs out"]
        assert not (tmp_path / RECORD).exists()
        with Store(tmp_path).lock():
            pass

    def test_the_record_of_a_dead_process_is_taken_over(self, tmp_path):
        ended = subprocess.Popen(["true"])
        ended.wait()
        for fields in ({"pid": ended.pid}, {"mark": "an earlier process of our number"}):
            self.leave(tmp_path, **fields)
            with Store(tmp_path).lock():
                assert json.loads((tmp_path / RECORD).read_bytes()) == describe_process() | {
                    "started": json.loads((tmp_path / RECORD).read_bytes())["started"]
                }

    def test_a_process_that_may_still_run_is_left_alone(self, tmp_path):
        parent = os.getppid()
        for fields in ({"pid": parent, "mark": process_mark(parent)}, {"host": "elsewhere"}, {"mark": ""}):
            self.leave(tmp_path, **fields)
            refused(Store(tmp_path), f"if that process no longer runs, delete {tmp_path / RECORD}")
        (tmp_path / RECORD).write_text("")  # its writer has just created it
        refused(Store(tmp_path), "in use by another process")
        (tmp_path / RECORD).unlink()
        with Store(tmp_path).lock():
            pass

    def test_of_two_that_take_over_at_once_one_wins(self, tmp_path, monkeypatch):
        self.leave(tmp_path, mark="dead")
        rename = os.rename

        def come_second(source, target):
            monkeypatch.setattr(os, "rename", rename)
            self.leave(tmp_path, host="the faster one")
            rename(source, target)

        monkeypatch.setattr(os, "rename", come_second)
        refused(Store(tmp_path), "on the faster one")
        assert json.loads((tmp_path / RECORD).read_bytes())["host"] == "the faster one"
