"""A disk that takes no more: one clear message, nothing half-written, and a run that goes on where it stopped."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_process import finish
from test_kill import outcome_of, stages_of

pytestmark = pytest.mark.slow

ROWS = 40
SHORT = ["--set", "cleaning.strategy=fixed_model", "--set", "cleaning.splits=2", "--set", "evaluation.controls=[]"]
GOES_ON = "finished stages are kept, and the same command goes on where it stopped"


@pytest.fixture(scope="module")
def undisturbed(demo_rows, small_recipe, tmp_path_factory) -> Path:
    """The folder of a pool, and of a run over it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = small_recipe(demo_rows(folder / "pool.jsonl", ROWS), folder)
    code, said = finish(["run", recipe, *SHORT], folder / "log.txt")
    assert code == 0, said
    return folder


@pytest.fixture
def small_disk(tmp_path: Path):
    """A function that gives the disk at the returned folder so many KiB; skips where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size_kib: int) -> Path:
        state = "remount" if place.is_mount() else "rw"
        command = ["mount", "-t", "tmpfs", "-o", f"{state},size={size_kib}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs privileges")
        return place

    try:
        yield mount
    finally:
        if place.is_mount():
            subprocess.run(["umount", str(place)], check=True)


def leftovers(run_folder: Path) -> list[str]:
    """Hidden files and folders, but for the lock, which belongs to the run folder."""
    return [str(path) for path in run_folder.rglob(".*") if path.name != ".lock"]


def largest_file_bytes(run_folder: Path, pattern: str) -> int:
    return max(path.stat().st_size for path in run_folder.glob(pattern) if path.is_file())


def check_that_it_stops_and_goes_on(
    arguments: list[object], run_folder: Path, whole: Path, words: tuple[str, ...], **limit: int
) -> Callable[[], None]:
    """Run into the limit; return a function that runs again without it."""
    code, said = finish(arguments, run_folder.parent / "log.txt", **limit)
    assert code == 1, said
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert said.endswith(error + "\n")
    for word in (f"cannot write {run_folder}/", *words, GOES_ON):
        assert word in error
    assert "Traceback" not in said
    assert leftovers(run_folder) == []
    kept = set(stages_of(run_folder))

    def go_on() -> None:
        code, said = finish(arguments, run_folder.parent / "log.txt")
        assert code == 0, said
        made, reused = map(int, re.findall(r"\((\d+) stages made, (\d+) reused,", said)[-1])
        assert made == len(stages_of(whole)) - len(kept)
        assert reused >= len(kept)
        found, expected = outcome_of(run_folder), outcome_of(whole)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []

    return go_on


@pytest.mark.parametrize("stage", ["stages/training-*/*", "stages/losses-*/*", "results/*/*/*"])
def test_a_limit_on_the_size_of_files_stops_the_run_and_its_end_lets_it_go_on(
    stage, undisturbed, small_recipe, tmp_path
):
    whole = undisturbed / "runs" / "small"
    recipe = small_recipe(undisturbed / "pool.jsonl", tmp_path)
    (tmp_path / "runs").mkdir()
    go_on = check_that_it_stops_and_goes_on(
        ["run", recipe, *SHORT],
        tmp_path / "runs" / "small",
        whole,
        ("File too large", "ulimit -f"),
        file_bytes=largest_file_bytes(whole, stage) - 1,
    )
    go_on()


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(undisturbed, small_recipe, small_disk, tmp_path):
    recipe = small_recipe(undisturbed / "pool.jsonl", tmp_path)
    disk = small_disk(100)
    (disk / "log.txt").symlink_to(tmp_path / "log.txt")  # what the command says needs no room of that disk
    go_on = check_that_it_stops_and_goes_on(
        ["run", recipe, *SHORT, "--set", f"output={disk}"],
        disk / "small",
        undisturbed / "runs" / "small",
        ("No space left on device", "free some space or choose another output folder"),
    )
    small_disk(20_000)
    go_on()


def test_a_full_disk_stops_a_training_without_leaving_half_a_model(
    undisturbed, tiny_model_folder, small_disk, tmp_path
):
    (table,) = (undisturbed / "runs" / "small").glob("results/*/fixed_model/kept.parquet")
    disk = small_disk(8)
    code, said = finish(["train", table, "--base", tiny_model_folder, "-o", disk / "model"], tmp_path / "log.txt")
    assert code == 1, said
    assert "Traceback" not in said
    assert f"error: cannot write {disk}/model: " in said
    assert "No space left on device" in said
    assert said.endswith("; free some space or choose another output folder\n")
    assert list(disk.iterdir()) == []
