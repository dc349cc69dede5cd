"""A run folder takes one run at a time: a second is told who holds it, before it reads or loads anything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from command_process import LONGEST_SECONDS, finish, start
from test_kill import in_progress

pytestmark = pytest.mark.slow


@pytest.fixture
def halted_run(demo_rows, small_recipe, tmp_path):
    """Recipe, run folder and process of a run that stands still in the middle of its first stage."""
    recipe = small_recipe(demo_rows(tmp_path / "pool.jsonl", 60), tmp_path)
    run_folder = tmp_path / "runs" / "small"
    process = start(["run", recipe], tmp_path / "log.txt")
    deadline = time.monotonic() + LONGEST_SECONDS
    while not in_progress(run_folder):
        assert process.is_alive(), (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    yield recipe, run_folder, process
    process.kill()
    process.join()


def test_a_second_run_is_refused_before_it_reads_the_pool_or_the_model(halted_run, tmp_path):
    recipe, run_folder, process = halted_run
    before = sorted(run_folder.rglob("*"))
    nowhere = ["--set", "pool.sources.0.path=no-pool.jsonl", "--set", "model.base=./no-model"]
    code, said = finish(["run", recipe, *nowhere], tmp_path / "second.txt")
    assert code == 1
    assert said.startswith(f"error: the run folder {run_folder} is in use by process {process.pid} (tokenclean run)")
    assert "wait for it, stop it, or choose another output or name" in said
    assert said.count("\n") == 1
    assert sorted(run_folder.rglob("*")) == before


def test_status_shows_who_runs_and_what_is_being_made_and_a_killed_run_blocks_nobody(halted_run, tmp_path):
    recipe, run_folder, process = halted_run
    code, said = finish(["status", run_folder], tmp_path / "status.txt")
    assert code == 0, said
    assert f"in use by process {process.pid} (tokenclean run) on " in said
    (line,) = (line for line in said.splitlines() if line.strip().startswith("."))
    assert f".{process.pid} " in line
    assert line.rstrip().endswith("unfinished")
    assert "the unfinished stage is the one being computed by the run in progress" in said

    process.kill()
    process.join()
    code, said = finish(["status", run_folder], tmp_path / "status.txt")
    assert "1 unfinished" in said
    assert "no run in progress" in said
    assert "the next run deletes what a stopped run left unfinished" in said

    code, said = finish(["run", recipe], tmp_path / "log.txt")
    assert code == 0, said
    assert "found 1 unfinished folders and files of stopped runs, cleared them" in said
    code, said = finish(["status", run_folder], tmp_path / "status.txt")
    assert "unfinished" not in said
    assert "no run in progress" in said


def test_a_refused_recipe_leaves_the_folder_free(halted_run, tmp_path):
    """What is wrong with a recipe is told before the lock is asked for."""
    recipe, _, _ = halted_run
    code, said = finish(["run", recipe, "--set", "training.epoch=2"], tmp_path / "second.txt")
    assert code == 2
    assert "did you mean epochs?" in said
    assert "in use" not in said


def test_the_lock_is_given_back_by_a_run_that_fails(demo_rows, small_recipe, tmp_path: Path):
    recipe = small_recipe(demo_rows(tmp_path / "pool.jsonl", 60), tmp_path)
    code, said = finish(["run", recipe, "--set", "model.base=./no-model"], tmp_path / "log.txt")
    assert code == 2, said
    assert "./no-model: no such model folder" in said
    assert not (tmp_path / "runs" / "small" / ".lock.json").exists()
