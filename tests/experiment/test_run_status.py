"""What is said of a run folder: its stages, why they are or aren't valid, and who runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from tokenclean.experiment.finished import status
from tokenclean.experiment.finished.status import RunStatus, describe_run
from tokenclean.store import STAGE_VERSIONS, Store
from tokenclean.store.layout import CHECKPOINTS
from tokenclean.training.checkpoint import save_checkpoint


def make(run: Path, name: str, within: str = "stages", **inputs: object) -> str:
    """A stage with one file of 300 bytes; its key."""

    def write(folder: Path) -> None:
        (folder / "data.bin").write_bytes(b"x" * 300)
        time.sleep(0.01)  # some kernels tell a file's time in steps of 4 ms

    return Store(run).stage(name, STAGE_VERSIONS[name], inputs, write, within=within).key


@pytest.fixture
def run(tmp_path) -> tuple[Path, str, str]:
    """A run folder, and the names of its training and of the losses that were computed with it."""
    training = make(tmp_path, "training")
    losses = make(tmp_path, "losses", model=training)
    make(tmp_path, "results", within="results", models=[training])
    return tmp_path, f"training-{training[:12]}", f"losses-{losses[:12]}"


def states(described: RunStatus) -> dict[str, str]:
    return {row[0].partition("-")[0].partition("/")[0]: row[-1] for row in described.table.rows}


def test_a_finished_run_is_valid_and_needs_no_word_more(run):
    folder, training, losses = run
    described = describe_run(folder)
    assert [row[0] for row in described.table.rows[:2]] == [training, losses]
    assert states(described) == {"training": "valid", "losses": "valid", "results": "valid"}
    assert described.headline.startswith(f"{folder}: 3 valid, ")
    assert described.headline.endswith("; no run in progress")
    assert described.notes == ()


def test_a_file_that_results_share_with_a_training_is_counted_once(tmp_path):
    store = Store(tmp_path)

    def write(folder: Path) -> None:
        (folder / "data.bin").write_bytes(b"x" * (5 << 20))

    training = store.stage("training", STAGE_VERSIONS["training"], {}, write)

    def link(folder: Path) -> None:
        os.link(training.path / "data.bin", folder / "model.bin")

    store.stage("results", STAGE_VERSIONS["results"], {"models": [training.key]}, link, within="results")
    described = describe_run(tmp_path)
    assert [row[2] for row in described.table.rows] == ["5.0 MiB", "5.0 MiB"]
    assert described.headline == f"{tmp_path}: 2 valid, 5.0 MiB on disk; no run in progress"


def test_stages_stand_in_the_order_in_which_they_were_made_within_one_second_too(tmp_path):
    made = [f"losses-{make(tmp_path, 'losses', number=number)[:12]}" for number in range(8)]
    assert [row[0] for row in describe_run(tmp_path).table.rows] == made


def test_a_stage_of_older_code_is_stale_and_so_is_what_was_built_on_it(run, monkeypatch):
    folder, training, losses = run
    version = STAGE_VERSIONS["training"]
    monkeypatch.setitem(STAGE_VERSIONS, "training", version + 1)
    described = describe_run(folder)
    assert states(described) == {"training": "stale", "losses": "stale", "results": "stale"}
    assert (
        f"{training}: stale: made by version {version} of training, the code is at version {version + 1}"
        in described.notes
    )
    assert f"{losses}: stale: built on {training}…, which is stale" in described.notes
    assert "they may be deleted" in described.notes[-1]


def test_a_damaged_stage_is_told_with_its_file_and_what_becomes_of_it(run):
    folder, training, _ = run
    (folder / "stages" / training / "data.bin").write_bytes(b"y" * 300)
    described = describe_run(folder)
    assert states(described) == {"training": "damaged", "losses": "valid", "results": "valid"}
    assert any(note.startswith(f"{training}: damaged: data.bin") for note in described.notes)
    assert f"a damaged stage moves it to {folder / 'damaged'} and recomputes it" in described.notes[-1]
    assert sum("which is damaged now" in note for note in described.notes) == 2
    assert "1 damaged" in described.headline

    make(folder, "training")  # moves it aside, and makes it again
    described = describe_run(folder)
    assert set(states(described).values()) == {"valid"}
    assert described.notes == (f"1 set aside in {folder / 'damaged'}, which may be deleted: {training}",)


def test_an_unfinished_stage_belongs_to_the_run_that_holds_the_folder_or_to_a_stopped_one(run):
    folder, _, _ = run
    unfinished = folder / "stages" / f".losses-0123456789ab.{os.getpid()}"
    unfinished.mkdir()
    described = describe_run(folder)
    assert described.table.rows[-1][0] == unfinished.name
    assert described.table.rows[-1][-1] == "unfinished"
    assert described.notes == ("the next run deletes what a stopped run left unfinished",)
    store = Store(folder)
    with store.lock():
        unfinished.mkdir(exist_ok=True)
        described = describe_run(folder)
        assert f"; in use by process {os.getpid()} (" in described.headline
        assert described.notes == ("the unfinished stage is the one being computed by the run in progress",)
    assert describe_run(folder).headline.endswith("no run in progress")


def test_a_lock_record_that_cannot_be_read_names_nobody(run):
    folder, _, _ = run
    (folder / ".lock.json").write_text("{")
    assert describe_run(folder).headline.endswith("; in use by another process")


def test_a_folder_that_is_no_stage_goes_by_its_own_name(run):
    folder, _, _ = run
    (folder / "stages" / "my notes").mkdir()
    described = describe_run(folder)
    assert described.table.rows[-1][0] == "my notes"
    assert "my notes: damaged: manifest.json: missing" in described.notes


def test_an_empty_run_folder_has_no_table_to_show(tmp_path):
    Store(tmp_path)
    described = describe_run(tmp_path)
    assert described == RunStatus(f"{tmp_path}: no stage yet; no run in progress", described.table, ())
    assert described.table.rows == ()


@pytest.mark.parametrize(
    ("later_seconds", "age"),
    [(0, " s"), (110, " s"), (125, "2 min"), (7300, "2 h"), (86400 * 3 + 9, "3 days"), (-99, "0 s")],
)
def test_age_is_told_in_the_unit_that_suits_it(tmp_path, monkeypatch, later_seconds, age):
    make(tmp_path, "losses")
    now = status.time.time()
    monkeypatch.setattr(status.time, "time", lambda: now + later_seconds)
    assert describe_run(tmp_path).table.rows[0][3].endswith(age)


def save_state(place: Path, step: int, **record: object) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    save_checkpoint(place, step, layer, optimizer, record)


def test_the_saved_state_of_a_training_is_told_with_its_name_steps_and_age(run, monkeypatch):
    folder, _, _ = run
    save_state(folder / CHECKPOINTS / "0123456789ab", 40, what="reference-1", steps=1200)
    save_state(folder / CHECKPOINTS / "ba9876543210", 7)
    now = status.time.time()
    monkeypatch.setattr(status.time, "time", lambda: now + 185)
    then = "3 min ago; the same command continues from it"
    assert describe_run(folder).notes == (
        f"training ba9876543210: state saved at step 7, {then}",
        f"training reference-1: state saved at step 40 of 1,200, {then}",
    )
    with Store(folder).lock():
        assert describe_run(folder).notes[1].endswith("3 min ago")


def test_looking_changes_nothing(run):
    folder, training, _ = run
    save_state(folder / CHECKPOINTS / "0123456789ab", 40, what="reference-1", steps=1200)
    (folder / "stages" / training / "data.bin").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    describe_run(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
